package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store/memory"
)

func TestPeerOfAPoolThatCarriesNothingIsNotCalledUp(t *testing.T) {
	block := netip.MustParsePrefix
	s := &state{
		lost: map[string]time.Duration{"c": time.Minute},
		plan: &plan.Plan{Peers: []plan.Peer{
			{Node: "a", Block: block("10.1.0.0/24"), Path: model.PathDirect},
			{Node: "b", Block: block("10.2.0.0/24"), Path: model.PathNone},
			{Node: "c", Block: block("10.3.0.0/24"), Path: model.PathNone},
		}},
	}
	var got []PeerState
	for _, p := range peerStates(s) {
		got = append(got, p.State)
	}
	if want := []PeerState{PeerUp, PeerNotCarried, PeerLost}; !slices.Equal(got, want) {
		t.Errorf("states %q, want %q", got, want)
	}
}

func TestBlockThatIsAnErrorIsNotAWarningToo(t *testing.T) {
	a := registrar(t, memory.New(), "n1", t.TempDir())
	failure := model.Problem{Code: "block-outside-pool", Severity: model.Failure, Subject: "block 10.1.0.0/24"}
	kept, other := failure, failure
	kept.Severity, other.Severity, other.Subject = model.Warning, model.Warning, "block 10.2.0.0/24"
	s := &state{passIssues: []model.Problem{failure}, storeIssues: []model.Problem{kept, other}}
	got := a.problems(s, StoreStatus{Connected: true})
	if want := []model.Problem{failure, other}; !slices.Equal(got, want) {
		t.Errorf("problems %+v, want %+v", got, want)
	}
}
