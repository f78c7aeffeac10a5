package bfd

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// good is a packet as another implementation sends it: Up, multiplier 3, 100 ms, after RFC 5880 section 4.1.
func good() []byte {
	return []byte{
		0x20, 0xc0, 3, 24, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
		0x00, 0x01, 0x86, 0xa0, 0x00, 0x03, 0x0d, 0x40, 0, 0, 0xc3, 0x50,
	}
}

func TestPacketIsReadAsTheRFCDrawsIt(t *testing.T) {
	want := Packet{
		State: Up, Multiplier: 3, Mine: 0x11223344, Yours: 0x55667788,
		MinTx: 100 * time.Millisecond, MinRx: 200 * time.Millisecond, MinEchoRx: 50 * time.Millisecond,
	}
	p, err := Parse(good())
	if err != nil || p != want {
		t.Fatalf("got %+v, %v, want %+v", p, err, want)
	}
	if got := p.Marshal(); string(got) != string(good()) {
		t.Fatalf("marshals as % x", got)
	}
	b := good()
	b[0], b[1] = 0x23, 0x7a // diagnostic 3; Down with poll, final, independent, demand
	want.State, want.Diag = Down, diagSignaled
	want.Poll, want.Final, want.Independent, want.Demand = true, true, true, true
	if p, err = Parse(b); err != nil || p != want {
		t.Fatalf("got %+v, %v, want %+v", p, err, want)
	}
}

// TestPacketChecks goes through RFC 5880 section 6.8.6.
func TestPacketChecks(t *testing.T) {
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   string // "": accepted
	}{
		"version 0":                         {func(b []byte) []byte { b[0] = 0; return b }, "version 0"},
		"version 2":                         {func(b []byte) []byte { b[0] = 0x40; return b }, "version 2"},
		"length too small":                  {func(b []byte) []byte { b[3] = 23; return b }, "length 23"},
		"length too small with auth":        {func(b []byte) []byte { b[1] |= bitAuth; b[3] = 25; return append(b, 1, 2) }, "length 25"},
		"length beyond the payload":         {func(b []byte) []byte { b[3] = 25; return b }, "length 25"},
		"short payload":                     {func(b []byte) []byte { return b[:23] }, "23 bytes"},
		"empty":                             {func([]byte) []byte { return nil }, "0 bytes"},
		"multiplier 0":                      {func(b []byte) []byte { b[2] = 0; return b }, "multiplier 0"},
		"multipoint":                        {func(b []byte) []byte { b[1] |= bitMultipoint; return b }, "multipoint"},
		"no discriminator of the sender":    {func(b []byte) []byte { clear(b[4:8]); return b }, "discriminator"},
		"Up without your discriminator":     {func(b []byte) []byte { clear(b[8:12]); return b }, "state Up"},
		"Init without your discriminator":   {func(b []byte) []byte { b[1] = 0x80; clear(b[8:12]); return b }, "state Init"},
		"authentication":                    {func(b []byte) []byte { b[1] |= bitAuth; b[3] = 26; return append(b, 1, 2) }, "authentication"},
		"Down without your discriminator":   {func(b []byte) []byte { b[1] = 0x40; clear(b[8:12]); return b }, ""},
		"AdminDown without discriminator":   {func(b []byte) []byte { b[1] = 0; clear(b[8:12]); return b }, ""},
		"more bytes than the packet's":      {func(b []byte) []byte { return append(b, 1, 2, 3) }, ""},
		"a diagnostic that is not assigned": {func(b []byte) []byte { b[0] |= 31; return b }, ""},
	} {
		_, err := Parse(c.change(good()))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	b := good()
	b[1] |= bitAuth
	b[3] = 26
	if _, err := Parse(append(b, 0, 0)); !errors.Is(err, errAuth) {
		t.Errorf("authentication: %v", err)
	}
}

func drawPacket(t *rapid.T) Packet {
	us := rapid.Uint32()
	p := Packet{
		State: State(rapid.IntRange(0, 3).Draw(t, "state")), Diag: Diag(rapid.IntRange(0, 31).Draw(t, "diag")),
		Poll: rapid.Bool().Draw(t, "poll"), Final: rapid.Bool().Draw(t, "final"),
		Independent: rapid.Bool().Draw(t, "independent"), Demand: rapid.Bool().Draw(t, "demand"),
		Multiplier: rapid.Uint8Min(1).Draw(t, "multiplier"),
		Mine:       rapid.Uint32Min(1).Draw(t, "mine"), Yours: rapid.Uint32Min(1).Draw(t, "yours"),
		MinTx:     time.Duration(us.Draw(t, "tx")) * time.Microsecond,
		MinRx:     time.Duration(us.Draw(t, "rx")) * time.Microsecond,
		MinEchoRx: time.Duration(us.Draw(t, "echo")) * time.Microsecond,
	}
	return p
}

func TestPacketRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPacket(t)
		if got, err := Parse(p.Marshal()); err != nil || got != p {
			t.Fatalf("%+v became %+v, %v", p, got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(good())
	f.Add([]byte{})
	f.Add(append(good(), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		again := p.Marshal()
		q, err := Parse(again)
		if err != nil || q != p {
			t.Fatalf("% x is %+v, which marshals as % x: %+v, %v", b, p, again, q, err)
		}
		if p.Mine == 0 || p.Multiplier == 0 || p.Yours == 0 && p.State > Down {
			t.Fatalf("% x was accepted: %+v", b, p)
		}
	})
}
