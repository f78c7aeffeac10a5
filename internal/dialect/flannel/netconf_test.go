package flannel_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
)

var update = flag.Bool("update", false, "write what comes out into the golden files")

func poolLine(p model.Pool) string {
	s := fmt.Sprintf("%s %s blocks /%d from %s to %s, %s %s", p.Name, p.CIDR, p.BlockSize, p.Min, p.Max, p.Path, p.Encap)
	if p.Path == model.PathVXLAN {
		v := p.VXLAN
		s += fmt.Sprintf(", vni %d port %d mtu %d gbp %v learning %v", v.VNI, v.Port, v.MTU, v.GBP, v.Learning)
	}
	return s + "\n"
}

// TestNetConfGolden: every file of testdata/netconf.txtar is an input, followed by one named like it and
// ".out" with its pools or its exact error.
func TestNetConfGolden(t *testing.T) {
	const file = "testdata/netconf.txtar"
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := &txtar.Archive{Comment: ar.Comment}
	for i, f := range ar.Files {
		if strings.HasSuffix(f.Name, ".out") {
			continue
		}
		var got strings.Builder
		pools, err := flannel.ParseNetConf(f.Data)
		for _, p := range pools {
			got.WriteString(poolLine(p))
		}
		if err != nil {
			got.WriteString("error: " + err.Error() + "\n")
			if pools != nil {
				t.Errorf("%s: an error and pools", f.Name)
			}
		}
		want := ""
		if i+1 < len(ar.Files) && ar.Files[i+1].Name == f.Name+".out" {
			want = string(ar.Files[i+1].Data)
		}
		if got.String() != want && !*update {
			t.Errorf("%s: got\n%swant\n%s", f.Name, got.String(), want)
		}
		out.Files = append(out.Files, f, txtar.File{Name: f.Name + ".out", Data: []byte(got.String())})
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFieldNamesAndValuesInAnySpellingMeanTheSame(t *testing.T) {
	want, err := flannel.ParseNetConf([]byte(`{"Network":"10.244.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan","VNI":3,"DirectRouting":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		`{"network":"10.244.0.0/16","SUBNETLEN":"25","backend":{"type":"VXLAN","vni":"3","Directrouting":"true"}}`,
		`{"NETWORK":"10.244.7.9/16","subnetLen":25,"backenD":{"TYPE":"vxlan","Vni":3,"directrouting":"TRUE","port":0,"mtu":null}}`,
	} {
		got, err := flannel.ParseNetConf([]byte(s))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", s, got, err, want)
		}
	}
}

func TestSizeOfTheInputIsBounded(t *testing.T) {
	_, err := flannel.ParseNetConf(bytes.Repeat([]byte(" "), 1<<20))
	var f *model.FieldError
	if !errors.As(err, &f) || f.Field != "size" {
		t.Errorf("got %v", err)
	}
	if _, err = flannel.ParseLease(bytes.Repeat([]byte(" "), 1<<20)); !errors.As(err, &f) || f.Field != "size" {
		t.Errorf("got %v", err)
	}
	if _, err = flannel.ParseSubnetEnv(bytes.Repeat([]byte("\n"), 1<<20)); !errors.As(err, &f) || f.Field != "size" {
		t.Errorf("got %v", err)
	}
}

// TestOverlappingPoolsAreNamed is the one fault of a network that no net-conf.json can have alone.
func TestOverlappingPoolsAreNamed(t *testing.T) {
	pools, err := flannel.ParseNetConf([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`))
	if err != nil {
		t.Fatal(err)
	}
	other := pools[0]
	other.Name, other.CIDR, other.Min, other.Max = "other", netip.MustParsePrefix("10.244.128.0/17"), netip.Addr{}, netip.Addr{}
	err = model.ValidatePools(append(pools, other))
	if want := `pool "other": cidr 10.244.128.0/17: want a range apart from pool "flannel" 10.244.0.0/16`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func FuzzParseNetConf(f *testing.F) {
	ar, err := txtar.ParseFile("testdata/netconf.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, x := range ar.Files {
		if !strings.HasSuffix(x.Name, ".out") {
			f.Add(x.Data)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		pools, err := flannel.ParseNetConf(text)
		if err != nil {
			if s := err.Error(); strings.ContainsAny(s, "\n\x1b") || len(s) > 1000 {
				t.Errorf("error of %d bytes, or over more than one line: %q", len(s), s)
			}
			return
		}
		if err := model.ValidatePools(pools); err != nil || len(pools) == 0 || len(pools) > 2 {
			t.Errorf("accepted, but %d pools, %v", len(pools), err)
		}
		for _, p := range pools {
			if !p.Min.IsValid() || !p.Max.IsValid() {
				t.Errorf("pool without bounds: %+v", p)
			}
		}
	})
}
