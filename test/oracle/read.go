package oracle

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

// Add reads a file as `kubectl apply -f` would and adds its objects to the world.
func (w *World) Add(text []byte) error {
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = w.addOne(document)
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
	}
}

func (w *World) addOne(document []byte) error {
	if len(bytes.TrimSpace(document)) == 0 {
		return nil
	}
	var head struct{ APIVersion, Kind string }
	if err := sigsyaml.Unmarshal(document, &head); err != nil {
		return err
	}
	switch head.Kind {
	case "Namespace":
		return into(&w.Namespaces, document)
	case "Pod":
		return into(&w.Pods, document)
	case "ServiceAccount":
		return into(&w.ServiceAccounts, document)
	case "EndpointSlice":
		return into(&w.EndpointSlices, document)
	case "ClusterNetworkPolicy":
		return into(&w.ClusterPolicies, document)
	case "Tier":
		return into(&w.Tiers, document)
	case "NetworkSet", "GlobalNetworkSet":
		return into(&w.NetworkSets, document)
	case "HostEndpoint":
		return into(&w.HostEndpoints, document)
	case "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy":
		return into(&w.CalicoPolicies, document)
	case "StagedKubernetesNetworkPolicy":
		return into(&w.StagedKubernetes, document)
	case "NetworkPolicy":
		if head.APIVersion == "networking.k8s.io/v1" {
			return into(&w.NetworkPolicies, document)
		}
		return into(&w.CalicoPolicies, document)
	}
	return fmt.Errorf("kind %q: not one that the oracle knows", head.Kind)
}

func into[T any](list *[]T, document []byte) error {
	var o T
	if err := sigsyaml.UnmarshalStrict(document, &o); err != nil {
		return fmt.Errorf("%T: %w", o, err)
	}
	*list = append(*list, o)
	return nil
}
