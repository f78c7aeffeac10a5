package oracle_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/oracle"
)

// TestWorldsCanBeWrittenAndRead: what a world writes as YAML, `heddle apply` reads as the objects that the
// comparisons use, and the oracle reads it back as the world that it was.
func TestWorldsCanBeWrittenAndRead(t *testing.T) {
	for seed := range uint64(100) {
		w := oracle.Random(seed)
		text := w.YAML()
		got, err := dialect.ReadYAML(text)
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		sameResources(t, seed, got, w.Resources())
		back := &oracle.World{}
		if err := back.Add(text); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		sameResources(t, seed, back.Resources(), w.Resources())
	}
}

func sameResources(t *testing.T, seed uint64, got, want []model.Resource) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("seed %d: %d objects, want %d", seed, len(got), len(want))
	}
	for i := range got {
		var a, b any
		if err := json.Unmarshal(got[i].Body, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(want[i].Body, &b); err != nil {
			t.Fatal(err)
		}
		if got[i].Key() != want[i].Key() || !reflect.DeepEqual(a, b) {
			t.Errorf("seed %d: %s %s, want %s %s", seed, got[i].Key(), got[i].Body, want[i].Key(), want[i].Body)
		}
	}
}

func TestSameSeedSameWorld(t *testing.T) {
	for seed := range uint64(20) {
		a, b := oracle.Random(seed).Mutate(seed), oracle.Random(seed).Mutate(seed)
		if !reflect.DeepEqual(a.Resources(), b.Resources()) || !reflect.DeepEqual(a.Endpoints, b.Endpoints) {
			t.Errorf("seed %d gives two worlds", seed)
		}
	}
}
