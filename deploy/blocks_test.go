//go:build kube

package deploy_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/test/harness"
)

const blocks = "/apis/heddle.net/v1/blocks"

// block is a Block; fields are of its spec, by turns with their values.
func block(name, cidr string, fields ...string) map[string]any {
	spec := map[string]any{"cidr": cidr, "pool": "p"}
	for i := 0; i+1 < len(fields); i += 2 {
		spec[fields[i]] = fields[i+1]
	}
	return map[string]any{"apiVersion": "heddle.net/v1", "kind": "Block", "metadata": map[string]any{"name": name}, "spec": spec}
}

// update writes a block over the one of its name.
func (s *server) update(t *testing.T, token string, b map[string]any) (int, string) {
	t.Helper()
	meta := b["metadata"].(map[string]any)
	path := blocks + "/" + meta["name"].(string)
	var now struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := json.Unmarshal([]byte(s.must(t, request{path: path})), &now); err != nil {
		t.Fatal(err)
	}
	meta["resourceVersion"] = now.Metadata.ResourceVersion
	return s.call(t, request{method: http.MethodPut, path: path, token: token, body: b})
}

// writesItsBlocksOnly: the token is of the agent on node a, and nodes are not asked whether they exist.
func writesItsBlocksOnly(t *testing.T, s *server, token string) {
	other := s.podToken(t, "heddle-b", "b")
	is := func(t *testing.T, code int, answer, refusal string) {
		t.Helper()
		if refusal == "" {
			if code < 200 || code > 299 {
				t.Errorf("refused: %d: %s", code, answer)
			}
			return
		}
		if code != http.StatusForbidden && code != http.StatusUnprocessableEntity || !strings.Contains(answer, refusal) {
			t.Errorf("%d: %s: want a refusal that says %q", code, answer, refusal)
		}
	}
	make := func(t *testing.T, token string, b map[string]any, refusal string) {
		t.Helper()
		code, answer := s.call(t, request{method: http.MethodPost, path: blocks, token: token, body: b})
		is(t, code, answer, refusal)
	}
	remove := func(t *testing.T, token, name, refusal string) {
		t.Helper()
		code, answer := s.call(t, request{method: http.MethodDelete, path: blocks + "/" + name, token: token})
		is(t, code, answer, refusal)
	}
	const notOwn = "blocks of its own node only"
	// The policy takes hold a moment after it was written.
	harness.Wait(t, patience, "the admission policy for blocks holds", func() bool {
		code, _ := s.call(t, request{method: http.MethodPost, path: blocks + "?dryRun=All", token: token, body: block("10.245.0.16-30", "10.245.0.16/30", "node", "b")})
		listed, _ := s.call(t, request{path: blocks, token: token}) // and its kind is served after a while
		return code == http.StatusForbidden && listed == http.StatusOK
	})
	t.Run("what-is-made", func(t *testing.T) {
		make(t, token, block("10.245.0.0-30", "10.245.0.0/30", "node", "a"), "")
		make(t, token, block("v6-fd00-245---126", "fd00:245::/126", "node", "a"), "")
		make(t, token, block("10.245.0.4-30", "10.245.0.4/30", "node", "b"), notOwn)
		make(t, other, block("10.245.0.4-30", "10.245.0.4/30", "node", "b"), "")
		// Asking for an address of another node's.
		make(t, token, block("10.245.0.6-32", "10.245.0.6/32", "node", "b", "borrower", "a"), "")
		make(t, token, block("10.245.0.7-32", "10.245.0.7/32", "node", "b", "borrower", "c"), notOwn)
		make(t, token, block("10.245.0.2-32", "10.245.0.2/32", "node", "a", "borrower", "b"), notOwn)
		// Nobody lends to himself, or what nobody asked for.
		make(t, token, block("10.245.0.7-32", "10.245.0.7/32", "node", "a", "lender", "b"), notOwn)
		make(t, token, block("10.245.0.2-32", "10.245.0.2/32", "node", "b", "lender", "a"), notOwn)
	})
	t.Run("what-no-Block-is", func(t *testing.T) {
		make(t, token, block("10.245.0.8-30", "10.245.0.12/30", "node", "a"), "the name of a Block")
		make(t, token, block("mine", "10.245.0.12/30", "node", "a"), "the name of a Block")
		make(t, token, block("fd00-245--4-126", "fd00:245::4/126", "node", "a"), "the name of a Block")
		make(t, token, block("10.245.0.7-32", "10.245.0.7/32", "node", "a"), "a single address")
		make(t, token, block("10.245.0.8-30", "10.245.0.8/30", "node", "b", "borrower", "a"), "a single address")
		make(t, token, block("10.245.0.7-32", "10.245.0.7/32", "node", "a", "borrower", "a"), "to another node")
		make(t, token, block("10.245.0.8-30", "10.245.0.8/30"), "spec.node")
	})
	t.Run("what-is-changed", func(t *testing.T) {
		change := func(token string, b map[string]any, refusal string) {
			t.Helper()
			code, answer := s.update(t, token, b)
			is(t, code, answer, refusal)
		}
		lent := block("10.245.0.6-32", "10.245.0.6/32", "node", "a", "lender", "b")
		change(token, lent, "only to lend")
		change(token, block("10.245.0.4-30", "10.245.0.4/30", "node", "a"), "only to lend")
		change(token, block("10.245.0.0-30", "10.245.0.0/30", "node", "b"), "only to lend")
		change(other, block("10.245.0.6-32", "10.245.0.6/32", "node", "c", "lender", "b"), "only to lend")
		change(other, block("10.245.0.6-32", "10.245.0.6/32", "node", "a", "lender", "c"), "only to lend")
		change(other, lent, "")
	})
	t.Run("what-is-deleted", func(t *testing.T) {
		remove(t, other, "10.245.0.6-32", notOwn) // it was lent
		remove(t, token, "10.245.0.6-32", "")
		remove(t, token, "10.245.0.4-30", notOwn)
		remove(t, other, "10.245.0.0-30", notOwn)
		remove(t, token, "10.245.0.0-30", "")
		make(t, token, block("10.245.0.6-32", "10.245.0.6/32", "node", "b", "borrower", "a"), "")
		remove(t, other, "10.245.0.6-32", "") // refused to lend it
		make(t, token, block("10.245.0.6-32", "10.245.0.6/32", "node", "b", "borrower", "a"), "")
		remove(t, token, "10.245.0.6-32", "") // not wanted any more
		remove(t, token, "v6-fd00-245---126", "")
	})
	// Whoever else writes is not meant.
	s.must(t, request{method: http.MethodDelete, path: blocks + "/10.245.0.4-30"})
}
