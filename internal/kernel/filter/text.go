package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/policy"
)

// Text is a table as text for `nft -f -`, which loads it as one transaction in place of whatever the tables
// held. inside is as in Options.
func Text(t *policy.Table, inside ...string) string {
	l := localsOf(t)
	all, _ := elementsOf(t, l, stated{inside: inside}) // what cannot be is not in it
	var b strings.Builder
	for _, spec := range skeleton {
		fmt.Fprintf(&b, "table %s\ndelete table %s\n", tableText(spec), tableText(spec))
	}
	b.WriteString(withChains(l))
	for _, spec := range skeleton {
		for _, s := range spec.sets {
			if words := s.words(all[s]); len(words) > 0 {
				fmt.Fprintf(&b, "add element %s %s { %s }\n", tableText(spec), s.name, strings.Join(words, ", "))
			}
		}
	}
	return b.String()
}

// withChains is the skeleton without the chains that l does not need.
func withChains(l locals) string {
	needed := map[string]bool{}
	for _, c := range l.chains(inetTable) {
		needed[c.name] = true
	}
	var b strings.Builder
	skip, inet := false, false
	for line := range strings.Lines(Skeleton()) {
		w := strings.Fields(line)
		switch {
		case len(w) > 1 && w[0] == "table":
			inet = w[1] == "inet"
		case len(w) > 1 && w[0] == "chain":
			skip = inet && !needed[w[1]]
		}
		if !skip {
			b.WriteString(line)
		}
		skip = skip && line != "\t}\n"
	}
	return b.String()
}

// words are elements as nft spells them, sorted.
func (s *setSpec) words(es elements) []string {
	keys := slices.SortedFunc(maps.Keys(es), compareIdents)
	var out []string
	for n, i := range keys {
		if i.ends() {
			continue
		}
		var w string
		switch {
		case s.interval() && len(s.fields) == 1:
			first, last := wordOf(s.fields[0], i[:s.keyLen]), wordOf(s.fields[0], bytes.Repeat([]byte{0xff}, int(s.keyLen)))
			if n+1 < len(keys) && keys[n+1].ends() {
				end, _ := netip.AddrFromSlice(keys[n+1][:s.keyLen])
				last = end.Prev().String()
			}
			if w = first; first != last {
				w += "-" + last
			}
		case s.interval():
			first, last := s.parts(i[:s.keyLen]), s.parts(i[s.keyLen:2*s.keyLen])
			for f := range first {
				if first[f] != last[f] {
					first[f] += "-" + last[f]
				}
			}
			w = strings.Join(first, " . ")
		default:
			w = strings.Join(s.parts(i[:s.keyLen]), " . ")
		}
		if s.data {
			w += " : " + classID(es[i])
		}
		out = append(out, w)
	}
	return out
}

// parts are the words of a key's parts.
func (s *setSpec) parts(key []byte) []string {
	out := make([]string, len(s.fields))
	for f, typ := range s.fields {
		size := types[typ].Bytes
		if part := key[:size]; typ == "classid" && s.interval() {
			out[f] = classID(binary.BigEndian.Uint32(part))
		} else {
			out[f] = wordOf(typ, part)
		}
		key = key[min(len(key), int(padded(size))):]
	}
	return out
}

func classID(n uint32) string {
	switch n {
	case 0:
		return "none"
	case codeDeny:
		return "root"
	}
	return fmt.Sprintf("%x:%x", n>>16, n&0xffff)
}

func wordOf(typ string, b []byte) string {
	switch typ {
	case "ipv4_addr", "ipv6_addr":
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case "classid":
		return classID(binary.NativeEndian.Uint32(b))
	case "ifname":
		return `"` + str(b) + `"`
	case "ether_addr":
		return net.HardwareAddr(b).String()
	case target:
		return fmt.Sprintf("0x%x", b)
	}
	n := uint64(0)
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return fmt.Sprint(n)
}
