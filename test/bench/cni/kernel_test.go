package cni

import (
	"os"
	"testing"
)

func TestKernelStepsAreAllMeasured(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	steps, err := kernelSteps(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if s.Wall <= 0 {
			t.Errorf("%s took %v", s.Name, s.Wall)
		}
	}
}
