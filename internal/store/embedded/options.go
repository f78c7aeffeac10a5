package embedded

import (
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
)

// Options say how one member of the store runs.
type Options struct {
	// Name tells this member from the others; "store" when empty.
	Name string
	// DataDir holds everything that survives a restart; made with mode 0700 when it is not there.
	DataDir string
	// Listen are the URLs on which agents are served: https://192.168.0.4:2379. Plain http:// only on
	// a loopback address; unix:///path is a socket for root alone. At least one.
	Listen []string
	// Advertise are the URLs by which agents reach this member; Listen when empty.
	Advertise []string
	// PeerListen is where other members are served: https://192.168.0.4:2380. With a single member it
	// may be empty: an unused Unix socket in DataDir takes its place.
	PeerListen string
	// PeerAdvertise is the URL by which other members reach this one; PeerListen when empty.
	PeerAdvertise string
	// Cluster are all members of a store of several, this one included: name to peer URL. It counts at
	// the first start only; one or three members make sense, five are taken too. Empty: one member.
	Cluster map[string]string
	// TLS are this member's certificate and key and the authority of all; needed for https://.
	TLS cert.Files
	// PeerTLS is the same between members; TLS when empty. Its certificate is of kind peer.
	PeerTLS cert.Files
	// QuotaBytes bounds the database; 2 GiB when 0.
	QuotaBytes int64
	// CompactPeriod is how much history is kept for watches to resume; 1 h when 0.
	CompactPeriod time.Duration
	// Heartbeat and Election time the members' leadership: 100 ms and 1 s when 0.
	Heartbeat time.Duration
	Election  time.Duration
	// Ready is called once, when the member serves.
	Ready func()
	// Logger gets etcd's warnings and errors, and our own lines.
	Logger *slog.Logger
}

func bad(field, value, want string) error {
	return &model.FieldError{Noun: "store", Field: field, Value: value, Want: want}
}

func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = "store"
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 2 << 30
	}
	if o.CompactPeriod == 0 {
		o.CompactPeriod = time.Hour
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 100 * time.Millisecond
	}
	if o.Election == 0 {
		o.Election = 10 * o.Heartbeat
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.Advertise) == 0 {
		o.Advertise = o.Listen
	}
	if o.PeerTLS.Empty() {
		o.PeerTLS = o.TLS
	}
	switch {
	case !model.ValidName(o.Name):
		return bad("--name", o.Name, "a lower-case RFC 1123 name")
	case !filepath.IsAbs(o.DataDir):
		return bad("--data-dir", o.DataDir, "an absolute path")
	case len(o.Listen) == 0:
		return bad("--listen", "", "at least one URL, such as https://192.168.0.4:2379")
	case o.QuotaBytes < 16<<20:
		return bad("quota", fmt.Sprint(o.QuotaBytes), "at least 16 MiB")
	case o.CompactPeriod < time.Second:
		return bad("compact-period", o.CompactPeriod.String(), "at least 1s")
	case o.Election < 5*o.Heartbeat:
		return bad("election", o.Election.String(), "at least five times the heartbeat of "+o.Heartbeat.String())
	}
	return o.checkURLs()
}

func (o *Options) checkURLs() error {
	for _, l := range o.Listen {
		if err := checkListen("--listen", l, o.TLS); err != nil {
			return err
		}
	}
	for _, a := range o.Advertise {
		u, err := url.Parse(a)
		if err == nil && u.Scheme == "unix" {
			continue
		}
		if err != nil || u.Host == "" {
			return bad("--advertise", a, "a URL such as https://192.168.0.4:2379")
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && addr.IsUnspecified() {
			return bad("--advertise", a, "an address that agents can reach, not every address")
		}
	}
	if len(o.Cluster) == 0 {
		if o.PeerListen == "" {
			return nil
		}
		return checkListen("--peer-listen", o.PeerListen, o.PeerTLS)
	}
	if o.PeerListen == "" {
		return bad("--peer-listen", "", "a URL such as https://192.168.0.4:2380, since the store has several members")
	}
	if err := checkListen("--peer-listen", o.PeerListen, o.PeerTLS); err != nil {
		return err
	}
	if o.PeerAdvertise == "" {
		o.PeerAdvertise = o.PeerListen
	}
	return o.checkCluster()
}

func (o *Options) checkCluster() error {
	list := o.memberList()
	if n := len(o.Cluster); n%2 == 0 || n > 5 {
		return bad("--initial-cluster", list, "one, three or five members: an even number survives no more losses than one fewer")
	}
	seen := map[string]string{}
	for name, u := range o.Cluster {
		if !model.ValidName(name) {
			return bad("--initial-cluster", list, "names that are lower-case RFC 1123 names")
		}
		if p, err := url.Parse(u); err != nil || p.Port() == "" || (p.Scheme != "https" && p.Scheme != "http") {
			return bad("--initial-cluster", name+"="+u, "a URL such as https://192.168.0.4:2380")
		}
		if other, ok := seen[u]; ok {
			return bad("--initial-cluster", list, fmt.Sprintf("one URL for each member; %q and %q share one", min(name, other), max(name, other)))
		}
		seen[u] = name
	}
	mine, ok := o.Cluster[o.Name]
	switch {
	case !ok:
		return bad("--initial-cluster", list, fmt.Sprintf("this member's name %q among them", o.Name))
	case mine != o.PeerAdvertise:
		return bad("--initial-cluster", o.Name+"="+mine, "the URL that this member advertises to its peers, "+o.PeerAdvertise)
	}
	return nil
}

// memberList is the members in etcd's own spelling, sorted: a=https://…,b=https://….
func (o *Options) memberList() string {
	var l []string
	for n, u := range o.Cluster {
		l = append(l, n+"="+u)
	}
	slices.Sort(l)
	return strings.Join(l, ",")
}

// ParseCluster reads the members in etcd's spelling: a=https://10.0.0.1:2380,b=https://10.0.0.2:2380.
func ParseCluster(s string) (map[string]string, error) {
	m := map[string]string{}
	if s == "" {
		return m, nil
	}
	for _, e := range strings.Split(s, ",") {
		name, u, ok := strings.Cut(strings.TrimSpace(e), "=")
		if !ok || name == "" || u == "" {
			return nil, bad("--initial-cluster", e, "NAME=URL, such as a=https://192.168.0.4:2380")
		}
		if _, twice := m[name]; twice {
			return nil, bad("--initial-cluster", s, fmt.Sprintf("each name once; %q is there twice", name))
		}
		m[name] = u
	}
	return m, nil
}

// checkListen refuses plain text on an address that others can reach, and a name in place of one.
func checkListen(field, s string, files cert.Files) error {
	u, err := url.Parse(s)
	if err == nil && u.Scheme == "unix" && u.Host == "" && field == "--listen" {
		if !filepath.IsAbs(u.Path) || len(u.Path) > 107 {
			return bad(field, s, "an absolute path of at most 107 bytes")
		}
		return nil
	}
	if err != nil || u.Port() == "" || (u.Scheme != "https" && u.Scheme != "http") || strings.Trim(u.Path, "/") != "" {
		return bad(field, s, "a URL such as https://192.168.0.4:2379")
	}
	host := u.Hostname()
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return bad(field, s, "an address of this machine in place of the name")
	}
	if u.Scheme == "https" {
		if err := files.Check(); err != nil {
			return fmt.Errorf("store: %s %s: %w", field, s, err)
		}
		return nil
	}
	if !addr.IsLoopback() {
		return bad(field, s, "https:// with --ca, --cert and --key (`heddle cert` makes them): plain text is for loopback addresses only")
	}
	return nil
}
