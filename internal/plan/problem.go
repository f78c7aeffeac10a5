package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// listed bounds the workloads and blocks that one problem names.
const listed = 10

// some writes a list, and counts what it leaves out.
func some(items []string) string {
	if len(items) <= listed {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:listed], ", "), len(items)-listed)
}

// fold makes one problem of those that differ only in what follows the first colon of their detail: one
// change of a pool puts all its blocks at fault. The problems are sorted.
func fold(ps []model.Problem) []model.Problem {
	out := []model.Problem{}
	var items []string
	for i, p := range ps {
		head, item, listing := strings.Cut(p.Detail, ": ")
		items = append(items, item)
		if next := i + 1; listing && next < len(ps) && strings.HasPrefix(ps[next].Detail, head+": ") {
			same := ps[next]
			same.Detail = p.Detail
			if same == p {
				continue
			}
		}
		if len(items) > 1 {
			p.Detail = fmt.Sprintf("%s: %s (%d in all)", head, some(items), len(items))
		}
		out, items = append(out, p), nil
	}
	return out
}

// users names the workloads with an address that the function takes.
func users(ws []model.Workload, has func(netip.Addr) bool) []string {
	var names []string
	for i := range ws {
		if slices.ContainsFunc(ws[i].Addresses, has) {
			names = append(names, ws[i].String())
		}
	}
	return names
}

// strand adds to the problem of an own block what it means for the workloads in it.
func strand(p *model.Problem, users []string) {
	if len(users) == 0 {
		p.Detail += "; no workload uses it, and it is given back"
		return
	}
	p.Detail += fmt.Sprintf("; workloads in it, which are cut off: %d", len(users))
	p.Next = "delete and add again: " + some(users)
}

// outsideBlocks is the one problem of the workloads whose address is in no block of this node.
func outsideBlocks(names []string, address netip.Addr) model.Problem {
	p := model.Problem{
		Code: "workload-outside-blocks", Severity: model.Failure, Subject: "workload " + names[0],
		Detail: fmt.Sprintf("its address %s is in no block of this node", address), Next: "delete and add the workload again",
	}
	if len(names) > 1 {
		p.Subject, p.Detail = fmt.Sprintf("%d workloads", len(names)), fmt.Sprintf("their addresses, such as %s, are in no block of this node", address)
		p.Next = "delete and add again: " + some(names)
	}
	return p
}
