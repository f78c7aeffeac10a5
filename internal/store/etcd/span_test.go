package etcd

import (
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

func TestWatchOfTheClusterDoesNotSpanWhatChangesOftenOrIsVeryMany(t *testing.T) {
	s := &Store{prefix: DefaultPrefix}
	for _, c := range [][2][]model.Kind{
		{{model.KindPool, model.KindNode, model.KindBlock}, {model.KindHeartbeat, model.KindEndpoint, model.KindResource}},
		{{model.KindEndpoint, model.KindResource}, {model.KindHeartbeat, model.KindPool, model.KindNode, model.KindBlock}},
	} {
		first, last := s.span(c[0])
		for _, k := range c[1] {
			if f := s.folder(k); f >= first && f < last {
				t.Errorf("the watch of %v is woken by %s", c[0], k)
			}
		}
	}
}
