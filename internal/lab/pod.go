package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"golang.org/x/sync/errgroup"
)

// Pod is a network namespace on a node, attached by a CNI call.
type Pod struct {
	// Name is unique in the lab: the pod's own name, with its namespace before a dot unless that is "default".
	Name        string       `json:"name"`
	Node        string       `json:"node"`
	Namespace   string       `json:"namespace,omitempty"` // empty: "default"
	Labels      []string     `json:"labels,omitempty"`    // key=value, given at ADD
	ContainerID string       `json:"containerID"`
	Addresses   []netip.Addr `json:"addresses"`
}

// Address is the pod's address of a family; the zero Addr when it has none.
func (p *Pod) Address(f model.Family) netip.Addr { return pick(p.Addresses, f) }

// addsAtOnce bounds the parallel ADDs of one lab.
const addsAtOnce = 4

// defaultNamespace is that of pods for which none is named.
const defaultNamespace = "default"

// own is the pod's name within its namespace.
func (p *Pod) own() string {
	_, name, found := strings.Cut(p.Name, ".")
	if !found {
		return p.Name
	}
	return name
}

// Pod names become file names and arguments.
var (
	podWant   = "1..32 of [a-z0-9-] that neither begin nor end with a dash, after NAMESPACE/ if need be"
	podNameRE = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\.)?[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

func (l *Lab) podFile(name string) string { return filepath.Join(l.Dir, podsDir, name+".json") }

// AddPod makes a network namespace on a node and attaches it with CNI ADD, as a runtime does. The name is
// NAME or NAMESPACE/NAME; an empty one takes the next free of p1, p2, … Labels are key=value.
func (l *Lab) AddPod(ctx context.Context, node, name string, labels ...string) (Pod, error) {
	if l.Spec.Topology.node(node) == nil {
		return Pod{}, fmt.Errorf("lab %q: no node %q: it has %s", l.Name, node, strings.Join(l.Nodes(), ", "))
	}
	pid, err := l.initPID(node)
	if err != nil {
		return Pod{}, err
	}
	p, err := l.reservePod(node, name, labels)
	if err != nil {
		return Pod{}, err
	}
	var out struct {
		Addresses []netip.Addr `json:"addresses"`
	}
	if err := runInside(ctx, pid, &out, "pod-add", p); err != nil {
		_ = os.Remove(l.podFile(p.Name))
		return Pod{}, fmt.Errorf("pod %q on %s: %w", p.Name, node, err)
	}
	p.Addresses = out.Addresses
	return p, writeJSON(l.podFile(p.Name), p)
}

// reservePod writes the pod's record before anything is made, so that two callers never share a name.
func (l *Lab) reservePod(node, name string, labels []string) (Pod, error) {
	l.podMu.Lock()
	defer l.podMu.Unlock()
	namespace, short, found := strings.Cut(name, "/")
	if !found || namespace == defaultNamespace {
		namespace = ""
	}
	if found {
		name = short
		if namespace != "" {
			name = namespace + "." + short
		}
	}
	if (name != "" || found) && (!podNameRE.MatchString(name) || strings.Contains(short, ".")) {
		return Pod{}, &model.FieldError{Noun: "pod", Field: "name", Value: name, Want: podWant}
	}
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	p := Pod{Name: name, Node: node, ContainerID: hex.EncodeToString(id), Namespace: namespace, Labels: labels}
	for i := 1; ; i++ {
		if name == "" {
			p.Name = "p" + strconv.Itoa(i)
		}
		raw, err := json.Marshal(p)
		if err != nil {
			return p, err
		}
		f, err := os.OpenFile(l.podFile(p.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			if name == "" {
				continue
			}
			return p, fmt.Errorf("pod %q: %w", name, ErrExists)
		}
		if err != nil {
			return p, err
		}
		_, err = f.Write(raw)
		return p, errors.Join(err, f.Close())
	}
}

// DelPod detaches a pod with CNI DEL and removes its namespace.
func (l *Lab) DelPod(ctx context.Context, name string) error {
	p, err := l.Pod(name)
	if err != nil {
		return err
	}
	pid, err := l.initPID(p.Node)
	if err != nil {
		return err
	}
	if err := runInside(ctx, pid, nil, "pod-del", p); err != nil {
		return fmt.Errorf("pod %q on %s: %w", p.Name, p.Node, err)
	}
	return os.Remove(l.podFile(p.Name))
}

// Pod finds a pod by NAME, NAMESPACE/NAME or NODE/NAME.
func (l *Lab) Pod(name string) (Pod, error) {
	node, short, found := strings.Cut(name, "/")
	if !found {
		node, short = "", name
	} else if l.Spec.Topology.node(node) == nil {
		node, short = "", strings.TrimPrefix(node+"."+short, defaultNamespace+".")
	}
	var p Pod
	if !podNameRE.MatchString(short) {
		return p, &model.FieldError{Noun: "pod", Field: "name", Value: name, Want: podWant}
	}
	err := readJSON(l.podFile(short), &p)
	if errors.Is(err, fs.ErrNotExist) || err == nil && node != "" && p.Node != node {
		return Pod{}, fmt.Errorf("lab %q: no pod %q: `heddle lab status` lists them", l.Name, name)
	}
	return p, err
}

// Pods lists the pods, sorted by name as a person counts (p2 before p10).
func (l *Lab) Pods() ([]Pod, error) {
	entries, err := os.ReadDir(filepath.Join(l.Dir, podsDir))
	if err != nil {
		return nil, err
	}
	var pods []Pod
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		p, err := l.Pod(name)
		if err != nil {
			return nil, err
		}
		if len(p.Addresses) > 0 { // else it is being added
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, func(a, b Pod) int {
		if d := len(a.Name) - len(b.Name); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	return pods, nil
}

func (l *Lab) addPods(ctx context.Context, n int) ([]Pod, error) {
	nodes := l.Nodes()
	pods := make([]Pod, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(addsAtOnce)
	for i := range pods {
		g.Go(func() error {
			var err error
			pods[i], err = l.AddPod(ctx, nodes[i%len(nodes)], "p"+strconv.Itoa(i+1))
			return err
		})
	}
	return pods, g.Wait()
}

func describePods(pods []Pod) string {
	var parts []string
	for _, p := range pods {
		text := p.Node + "/" + p.Name
		if len(p.Addresses) > 0 {
			text += " " + p.Addresses[0].String()
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// runInside runs one of the hidden commands in a node's namespaces, with the pod as JSON on its
// standard input, and decodes what it answers into out, unless that is nil.
func runInside(ctx context.Context, initPID int, out any, command string, p Pod) error {
	in, err := json.Marshal(p)
	if err != nil {
		return err
	}
	cmd := enter(ctx, initPID, "", insideBin, "lab", command)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text := strings.TrimSpace(stderr.String())
		if text == "" {
			text = err.Error()
		}
		return errors.New(strings.TrimPrefix(text, "heddle: "))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(&stdout).Decode(out); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("answer of %s: %w", command, err)
	}
	return nil
}
