package enforce

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store"
)

// The memory is what a start without the store goes by: lines of JSON, gzipped, each an endpoint or a
// resource. It is written whole and renamed into place.

// rememberRest is how many times as long as a writing the next one waits.
const rememberRest = 20

type line struct {
	Endpoint *model.Endpoint `json:"endpoint,omitempty"`
	Resource *model.Resource `json:"resource,omitempty"`
}

func (e *Enforcer) recall() error {
	f, err := os.Open(e.Memory)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		e.Log.Warn("what was known of policies cannot be read; waiting for the store", "file", e.Memory, "error", err)
		return nil
	}
	dec := json.NewDecoder(z)
	for {
		var l line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			e.known = true
			poke(e.kick)
			return nil
		}
		if err != nil {
			e.Log.Warn("what was known of policies cannot be read; waiting for the store", "file", e.Memory, "error", err)
			return nil
		}
		if l.Endpoint != nil && l.Endpoint.Validate() == nil {
			e.putEndpoint(l.Endpoint)
		}
		if l.Resource != nil && l.Resource.Validate() == nil {
			e.putResource(l.Resource)
		}
	}
}

func (e *Enforcer) rememberLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			e.remember()
			return nil
		case <-e.changed:
		}
		begin := time.Now()
		e.remember()
		// A start reads many times what it keeps; the machine gets back the rest.
		e.settled.Do(debug.FreeOSMemory)
		store.Pause(ctx, max(time.Second, rememberRest*time.Since(begin)))
	}
}

// Remember writes what is known now: whoever says that this node is ready relies on it in its next life.
func (e *Enforcer) Remember() { e.remember() }

func (e *Enforcer) remember() {
	e.remembering.Lock()
	defer e.remembering.Unlock()
	if err := e.write(); err != nil {
		e.Log.Error("cannot remember the policies", "error", err)
	}
}

func (e *Enforcer) write() error {
	e.mu.Lock()
	synced := e.synced
	var keys []string
	for key := range e.compiler.Keys() {
		if strings.HasPrefix(key, "e/") && !strings.HasPrefix(key, "e/"+e.Node+":") {
			keys = append(keys, key)
		}
	}
	resources, pods := slices.Collect(maps.Values(e.resources)), slices.Collect(maps.Values(e.pods))
	e.mu.Unlock()
	if !synced {
		return nil // what is in the file is all that is known
	}
	f, err := os.CreateTemp(filepath.Dir(e.Memory), "."+filepath.Base(e.Memory)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already after a rename
	buf := bufio.NewWriter(f)
	z, _ := gzip.NewWriterLevel(buf, gzip.BestSpeed)
	enc := json.NewEncoder(z)
	// A few at a time: nobody waits for long, and no second copy of a large cluster is ever made.
	for some := range slices.Chunk(keys, 256) {
		for _, ep := range e.endpoints(some) {
			err = errors.Join(err, enc.Encode(line{Endpoint: ep}))
		}
	}
	for _, o := range pods {
		err = errors.Join(err, enc.Encode(line{Endpoint: o}))
	}
	for _, r := range resources {
		err = errors.Join(err, enc.Encode(line{Resource: r}))
	}
	err = errors.Join(err, z.Close(), buf.Flush(), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("%s: %w", e.Memory, err)
	}
	return os.Rename(f.Name(), e.Memory)
}

// endpoints are those of the keys that are still there.
func (e *Enforcer) endpoints(keys []string) []*model.Endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*model.Endpoint
	for _, key := range keys {
		if ep, ok := e.compiler.Object(key).(*policy.Endpoint); ok {
			_, link, _ := strings.Cut(ep.Key, ":")
			if byName(ep.Key) {
				link = ""
			}
			out = append(out, &model.Endpoint{
				Node: ep.Node, Link: link, Namespace: ep.Namespace, Name: ep.Name, Labels: ep.Labels,
				ServiceAccount: ep.ServiceAccount, Ports: ep.Ports, Addresses: ep.Addresses,
			})
		}
	}
	return out
}
