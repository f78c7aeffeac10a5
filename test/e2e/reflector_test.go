package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// smallMesh makes nodes elect route reflectors as soon as there are four, and gives a node a block of four addresses.
const smallMesh = `
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default, annotations: {heddle.net/mesh-limit: "3"}}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default}
spec: {cidr: 10.244.0.0/16, blockSize: 30, ipipMode: Never, vxlanMode: Never}
`

var electedRE = regexp.MustCompile(`elected route reflectors ([a-z0-9]+), ([a-z0-9]+)`)

// elected are the two reflectors that all these nodes count on, to which each of them speaks.
func elected(ctx context.Context, l *lab.Lab, nodes []string) ([]string, error) {
	var both []string
	for _, node := range nodes {
		s, err := l.Status(ctx, node)
		if err != nil {
			return nil, err
		}
		if s.BGP == nil {
			return nil, fmt.Errorf("%s does not speak", node)
		}
		m := electedRE.FindStringSubmatch(s.BGP.Mode)
		if m == nil || both != nil && !slices.Equal(both, m[1:]) {
			return nil, fmt.Errorf("%s: %s, another one has %v", node, s.BGP.Mode, both)
		}
		both = m[1:]
		for _, n := range both {
			up := slices.ContainsFunc(s.BGP.Neighbors, func(x peering.Status) bool { return x.Node == n && x.State == peering.Established })
			if n != node && !up {
				return nil, fmt.Errorf("%s does not speak to %s: %+v", node, n, s.BGP.Neighbors)
			}
		}
	}
	return both, nil
}

// TestBGPReplacesADeadReflector: the agent of an elected route reflector is stopped for good. The others elect the next
// one, keep the routes to the dead one's pods, and hear of new blocks.
func TestBGPReplacesADeadReflector(t *testing.T) {
	t.Parallel()
	ctx, l := upCalico(t, "flat", smallMesh, func(s *lab.Spec) {
		nodes := s.Topology.Nodes
		for i := range nodes {
			nodes[i].ClusterID, nodes[i].Labels = netip.Addr{}, nil
		}
		fourth := nodes[2]
		fourth.Name, fourth.Addresses = "n4", []netip.Addr{netip.MustParseAddr("192.168.100.14"), netip.MustParseAddr("fd00:100::14")}
		s.Topology.Nodes = append(nodes, fourth)
		s.AgentArgs, s.Pods = []string{"--lease-ttl", "6s"}, 4
	})
	var first []string
	eventually(t, 60*time.Second, "all speak to two elected reflectors", func() (err error) {
		first, err = elected(ctx, l, l.Nodes())
		return err
	})
	var client string
	for _, node := range l.Nodes() {
		if !slices.Contains(first, node) {
			client = node
			break
		}
	}
	eventually(t, 60*time.Second, "everybody has heard of everybody", func() error { return allPathsAre(ctx, l, model.PathBGP) })

	dead := first[0]
	if err := l.StopService(ctx, dead, "agent"); err != nil {
		t.Fatal(err)
	}
	living := slices.DeleteFunc(l.Nodes(), func(n string) bool { return n == dead })
	var second []string
	took := eventually(t, 60*time.Second, "the living have elected another one, and speak to it", func() (err error) {
		if second, err = elected(ctx, l, living); err == nil && slices.Contains(second, dead) {
			err = fmt.Errorf("elected are %v still", second)
		}
		return err
	})
	t.Logf("%v, then %v after %s", first, second, took.Round(100*time.Millisecond))
	if s := status(ctx, t, l, client); !strings.Contains(s.BGP.Mode, "replaced because silent: "+dead) || !slices.Contains(second, first[1]) {
		t.Errorf("%s: %s", client, s.BGP.Mode)
	}
	reach(ctx, t, l) // the dead one's pods too

	// A block that is claimed now reaches all.
	for i := range 5 {
		if _, err := l.AddPod(ctx, client, fmt.Sprintf("more%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 60*time.Second, "the living have heard of the new block", func() error {
		var errs []error
		for _, node := range living {
			if node == client {
				continue
			}
			s, err := l.Status(ctx, node)
			blocks := 0
			for _, p := range s.Peers {
				if p.Node == client && p.Path == model.PathBGP {
					blocks++
				}
			}
			if err == nil && blocks < 2 {
				err = fmt.Errorf("%s has %d blocks of %s by BGP", node, blocks, client)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}
