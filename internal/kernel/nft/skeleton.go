package nft

import (
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// Policies of a chain: NF_DROP and NF_ACCEPT of linux/netfilter.h.
const (
	policyDrop   = 0
	policyAccept = 1
)

var ownTable = tableKey{nftables.TableFamilyINet, plan.Table}

// chains are those of the skeleton. The nat hooks run theirs for the first packet of a flow.
var chains = []chain{
	{table: ownTable, name: "hostports"},
	{table: ownTable, name: "hide"},
	{table: ownTable, name: "prerouting", base: true, kind: "nat", hook: unix.NF_INET_PRE_ROUTING, priority: -90, policy: policyAccept},
	{table: ownTable, name: "output", base: true, kind: "nat", hook: unix.NF_INET_LOCAL_OUT, priority: -90, policy: policyAccept},
	{table: ownTable, name: "localnet", base: true, kind: "filter", hook: unix.NF_INET_LOCAL_IN, priority: 0, policy: policyAccept},
	{table: ownTable, name: "input", base: true, kind: "nat", hook: unix.NF_INET_LOCAL_IN, priority: 100, policy: policyAccept},
	{table: ownTable, name: "postrouting", base: true, kind: "nat", hook: unix.NF_INET_POST_ROUTING, priority: 100, policy: policyAccept},
}

// repair buffers in c what makes the table equal to f, and counts the objects. A table whose form is
// not the skeleton's is made anew.
func repair(c *nftables.Conn, have *table, f plan.Filter) (int, error) {
	if have == nil || !sameForm(have) {
		return rebuild(c, f)
	}
	t := &nftables.Table{Name: plan.Table, Family: nftables.TableFamilyINet}
	n := 0
	for _, w := range wantSets(f) {
		i := slices.IndexFunc(have.sets, func(s set) bool { return s.name == w.name })
		changed, err := fill(c, t, have.sets[i].elems, &w)
		if err != nil {
			return 0, err
		}
		n += changed
	}
	for _, w := range chains {
		have := slices.DeleteFunc(slices.Clone(have.rules), func(r rule) bool { return r.chain != w.name })
		if want := skeletonRules(w.name); !slices.EqualFunc(have, want, sameRule) {
			ch := &nftables.Chain{Name: w.name, Table: t}
			c.FlushChain(ch)
			n += addRules(c, t, ch, want)
		}
	}
	return n, nil
}

// rebuild buffers the whole table, in place of whatever is there.
func rebuild(c *nftables.Conn, f plan.Filter) (int, error) {
	t := &nftables.Table{Name: plan.Table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	n := 1 // the table
	for _, w := range wantSets(f) {
		s := w.set(t)
		if err := c.AddSet(s, nil); err != nil {
			return 0, err
		}
		if err := addElems(c, s, w.elems); err != nil {
			return 0, err
		}
		n += 1 + len(w.elems)
	}
	for _, w := range chains {
		ch := &nftables.Chain{Name: w.name, Table: t}
		if w.base {
			hook, priority, policy := nftables.ChainHook(w.hook), nftables.ChainPriority(w.priority), nftables.ChainPolicyAccept
			ch.Type, ch.Hooknum, ch.Priority, ch.Policy = nftables.ChainType(w.kind), &hook, &priority, &policy
		}
		n += 1 + addRules(c, t, c.AddChain(ch), skeletonRules(w.name))
	}
	return n, nil
}

func addRules(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain, rules [][]expr.Any) int {
	for _, exprs := range rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: exprs})
	}
	return len(rules)
}

// sameForm tells whether the table has the skeleton's chain and sets, and nothing else.
func sameForm(t *table) bool {
	want := wantSets(plan.Filter{})
	if t.flags != 0 || len(t.chains) != len(chains) || len(t.sets) != len(want) {
		return false
	}
	for _, w := range chains {
		if !slices.Contains(t.chains, w) {
			return false
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(t.sets, w.sameForm) {
			return false
		}
	}
	return true
}

func sameRule(have rule, want []expr.Any) bool {
	return slices.EqualFunc(have.exprs, want, func(a any, b expr.Any) bool { return reflect.DeepEqual(a, any(b)) })
}
