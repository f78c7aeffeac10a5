package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/test/harness"
)

var update = flag.Bool("update", false, "write what was printed as the expectation")

// TestBadInputIsRefusedByItsExactWordsAndChangesNothing runs the cases of testdata/badinput: what a user
// does, and what the answer is, word for word. Each file has, in the order in which they come to pass:
//
//	listen       sockets that somebody else has: tcp 127.0.0.1:2379
//	pool         a pool of another tool: name range
//	nodes        nodes of the network: name address block
//	setup        shell commands on the host
//	serve        a store of the case's own
//	other-agent  arguments of an agent in another namespace
//	agent        arguments of the host's agent
//	before       shell commands once the agent is ready
//	run          the command in question; it must fail
//	problem      the code of the problem that `heddle status` must show, and what its detail must have
//	ready        whether pods can be added beside the problem, or why not
//	output       exit code and output of run, or the problem as `heddle status` prints it
//	marked       (only there) means that the agent may do the rest of its work: make what is its own
//
// Other files are written into the host's directory, $DIR. $STORE are the flags of an empty store, $AGENT
// those of an agent on it with everything else in $DIR, $POD a namespace.
func TestBadInputIsRefusedByItsExactWordsAndChangesNothing(t *testing.T) {
	harness.Root(t)
	files, err := filepath.Glob("testdata/badinput/*.txtar")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d cases, %v: want those of testdata/badinput", len(files), err)
	}
	process := startStore(t)
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := (&badCase{host: newHost(t), ar: ar, process: process}).play()
			if *update {
				setSection(ar, "output", got)
				if err := os.WriteFile(f, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want, _ := section(ar, "output"); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

type badCase struct {
	*host
	ar      *txtar.Archive
	process storeProcess
	store   store.Store // where the case uses one
	pod     string
}

func section(ar *txtar.Archive, name string) (string, bool) {
	for _, f := range ar.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

func setSection(ar *txtar.Archive, name, text string) {
	for i := range ar.Files {
		if ar.Files[i].Name == name {
			ar.Files[i].Data = []byte(text)
			return
		}
	}
	ar.Files = append(ar.Files, txtar.File{Name: name, Data: []byte(text)})
}

// play sets the scene, does the deed and returns what the user saw.
func (c *badCase) play() string {
	c.t.Helper()
	c.pod = harness.Netns(c.t)
	storeFlags := ""
	if text := string(txtar.Format(c.ar)); strings.Contains(text, "$STORE") || strings.Contains(text, "$AGENT") {
		storeFlags, c.store = c.process.open(c.t, "/"+filepath.Base(c.dir))
	}
	c.env = append(c.env, "POD=/run/netns/"+c.pod, "STORE="+storeFlags,
		"AGENT=--node n1 --state-dir "+c.path("state")+" --run-dir "+c.path("run")+" --cni-conf-dir "+c.path("cni")+" "+storeFlags)
	for _, f := range c.ar.Files {
		switch f.Name {
		case "listen", "pool", "nodes", "setup", "serve", "other-agent", "agent", "before", "run", "problem", "ready", "output", "marked":
		default:
			c.write(f.Name, string(f.Data))
		}
	}
	if text, ok := section(c.ar, "listen"); ok {
		c.listen(text)
	}
	if text, ok := section(c.ar, "pool"); ok {
		f := strings.Fields(text)
		c.put(&model.Pool{Name: f[0], CIDR: netip.MustParsePrefix(f[1]), BlockSize: 24, Path: model.PathDirect, Encap: model.EncapNever})
	}
	if text, ok := section(c.ar, "nodes"); ok {
		c.nodes(text)
	}
	if text, ok := section(c.ar, "setup"); ok {
		c.must(text)
	}
	if text, ok := section(c.ar, "serve"); ok {
		p := c.start(strings.TrimSpace(text))
		eventually(c.t, 30*time.Second, "the store serves", func() error { return p.out.has("store serves") })
	}
	if args, ok := section(c.ar, "other-agent"); ok {
		other := *c.host
		other.ns = c.pod
		p := other.start("heddle agent " + args)
		other.running(p, c.path("other"))
	}
	if code, ok := section(c.ar, "problem"); ok {
		return c.problem(strings.TrimSpace(code))
	}
	return c.command()
}

// command runs the command in question.
func (c *badCase) command() string {
	c.t.Helper()
	if args, ok := section(c.ar, "agent"); ok {
		c.running(c.start("heddle agent "+args), c.path("run"))
		if c.store != nil {
			c.waitReady()
		}
	}
	if text, ok := section(c.ar, "before"); ok {
		c.must(text)
	}
	before, stored := c.everything(), c.stored()
	script, _ := section(c.ar, "run")
	out, code := c.sh(script)
	if code == 0 {
		c.t.Errorf("exit code 0, want another: it failed")
	}
	c.unchanged(before, c.everything(), nil)
	if after := c.stored(); after != stored {
		c.t.Errorf("the store changed from\n%sto\n%s", stored, after)
	}
	return c.normal(fmt.Sprintf("exit %d\n%s", code, out))
}

// problem starts the agent and waits for what its status says.
func (c *badCase) problem(expected string) string {
	c.t.Helper()
	code, detail, _ := strings.Cut(expected, " ")
	before, stored := c.everything(), c.stored()
	args, _ := section(c.ar, "agent")
	c.running(c.start("heddle agent "+args), c.path("run"))
	if text, ok := section(c.ar, "before"); ok {
		c.waitReady()
		c.must(text)
		before, stored = c.everything(), c.stored()
	}
	eventually(c.t, 30*time.Second, "problem "+code, func() error {
		s := c.status()
		for _, pr := range s.Problems {
			if pr.Code == code && strings.Contains(pr.Detail, detail) {
				return nil
			}
		}
		return fmt.Errorf("ready %t %s, problems %v", s.Ready, s.Reason, s.Problems)
	})
	c.ready()
	shown := ""
	eventually(c.t, 30*time.Second, "heddle status prints it", func() error { // the two looks may meet a change
		shown = ""
		for _, pr := range c.status().Problems {
			if pr.Code == code {
				shown += fmt.Sprintf("  %s  %s\n      try: %s\n", pr.Severity, pr, pr.Next)
			}
		}
		if text := c.must("heddle status --run-dir run"); shown == "" || !strings.Contains(text, shown) {
			return fmt.Errorf("got\n%swant in it:\n%s", text, shown)
		}
		return nil
	})
	after := c.everything()
	_, marked := section(c.ar, "marked")
	c.unchanged(before, after, &marked)
	if now := c.stored(); !marked && now != stored {
		c.t.Errorf("the store changed from\n%sto\n%s", stored, now)
	}
	return c.normal(shown)
}

// ready waits until the agent says of itself what the case tells.
func (c *badCase) ready() {
	c.t.Helper()
	if *update {
		time.Sleep(2 * time.Second)
	}
	said := func() string {
		if s := c.status(); !s.Ready {
			return c.normal("no: " + s.Reason + "\n")
		}
		return "yes\n"
	}
	if *update {
		setSection(c.ar, "ready", said())
	}
	want, _ := section(c.ar, "ready")
	eventually(c.t, 30*time.Second, "ready", func() error {
		if got := said(); got != want {
			return fmt.Errorf("got %swant %s", got, want)
		}
		return nil
	})
}

// unchanged wants both kernels to be equal; where the agent may do its own work, that nothing is gone.
func (c *badCase) unchanged(before, after string, mayAdd *bool) {
	c.t.Helper()
	gone, added := lines(before, after), lines(after, before)
	if mayAdd != nil && *mayAdd {
		added = nil
		// What the agent needs from the whole host: that it forwards.
		kept := gone[:0]
		for _, l := range gone {
			if !strings.HasSuffix(l, "forwarding:0") && !strings.HasSuffix(l, "ip_forward:0") {
				kept = append(kept, l)
			}
		}
		gone = kept
	}
	if len(gone)+len(added) > 0 {
		c.t.Errorf("the kernel changed; gone:\n%s\nadded:\n%s", strings.Join(gone, "\n"), strings.Join(added, "\n"))
	}
}

// everything is what both kernels hold, once they have come to rest.
func (c *badCase) everything() string {
	c.t.Helper()
	return settled(c.t, c.ns) + settled(c.t, c.pod)
}

func (c *badCase) stored() string {
	if c.store == nil {
		return ""
	}
	return atRest(c.t, "the store", func() string { // an agent registers after its pass
		return stored(c.t, c.store, model.KindPool, model.KindNode, model.KindBlock, model.KindResource)
	})
}

func (c *badCase) waitReady() {
	c.t.Helper()
	eventually(c.t, 30*time.Second, "the agent is ready", func() error {
		if s := c.status(); !s.Ready {
			return fmt.Errorf("not ready: %s", s.Reason)
		}
		return nil
	})
}

// listen takes sockets in the host's namespace, as another program would.
func (c *badCase) listen(text string) {
	c.t.Helper()
	for l := range strings.Lines(text) {
		network, address, _ := strings.Cut(strings.TrimSpace(l), " ")
		var s io.Closer
		err := c.inside(func() (err error) {
			if network == "udp" {
				s, err = net.ListenPacket(network, address)
			} else {
				s, err = net.Listen(network, address)
			}
			return err
		})
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = s.Close() })
	}
}

// nodes registers other nodes, which are alive, each with a block of the pool flannel.
func (c *badCase) nodes(text string) {
	c.t.Helper()
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		c.put(&model.Node{Name: f[0], ID: "another machine", Address4: netip.MustParseAddr(f[1])})
		c.put(&model.Block{CIDR: netip.MustParsePrefix(f[2]), Pool: "flannel", Node: f[0]})
		c.put(&model.Heartbeat{Node: f[0], Renewed: time.Now(), TTL: time.Hour})
	}
}

func (c *badCase) put(o model.Object) {
	c.t.Helper()
	if _, err := c.store.Put(context.Background(), o, 0); err != nil {
		c.t.Fatal(err)
	}
}

var (
	logLineRE = regexp.MustCompile(`(?m)^time=.*\n`)
	pidRE     = regexp.MustCompile(`\b(process|pid) \d+`)
	agoRE     = regexp.MustCompile(`\b\d+m?s ago|in \d+m\d+s|in \d+h\d+m\d+s`)
)

// normal leaves out what differs from run to run: log lines, directories, process numbers, ages.
func (c *badCase) normal(text string) string {
	text = logLineRE.ReplaceAllString(text, "")
	text = strings.ReplaceAll(text, c.dir, "$DIR")
	text = strings.ReplaceAll(text, c.pod, "POD")
	text = strings.ReplaceAll(text, c.process.socket, "STORE.sock")
	text = pidRE.ReplaceAllString(text, "$1 PID")
	return agoRE.ReplaceAllString(text, "TIME")
}
