package kube

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
)

const protobuf = "application/vnd.kubernetes.protobuf"

// The groups of the API that are read. Calico's objects are custom resources, or come from its own API server.
var (
	coreV1      = corev1.SchemeGroupVersion
	networkV1   = networkingv1.SchemeGroupVersion
	discoveryV1 = discoveryv1.SchemeGroupVersion
	clusterV1   = schema.GroupVersion{Group: "policy.networking.k8s.io", Version: "v1alpha2"}
	calicoV1    = schema.GroupVersion{Group: calico.CRDGroup, Version: "v1"}
	calicoV3    = schema.GroupVersion{Group: calico.Group, Version: "v3"}
)

func calicoGroup(group string) bool { return group == calicoV1.Group || group == calicoV3.Group }

// scheme has the built-in types that are read, and no others: the whole of Kubernetes' is megabytes.
var (
	scheme     = newScheme()
	codecs     = serializer.NewCodecFactory(scheme)
	parameters = runtime.NewParameterCodec(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme, discoveryv1.AddToScheme} {
		utilruntime.Must(add(s))
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s
}

// builtIn is a source of a kind that has a Go type.
func builtIn(c rest.Interface, gv schema.GroupVersion, resource string, empty func() runtime.Object, reduce func(runtime.Object) *thin) *source {
	return &source{
		resource: gv.WithResource(resource), reduce: reduce,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l := empty()
			return l, c.Get().Resource(resource).VersionedParams(&o, parameters).MaxRetries(0).Do(ctx).Into(l)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return c.Get().Resource(resource).VersionedParams(&o, parameters).MaxRetries(0).Watch(ctx)
		},
	}
}

// always are the sources that every cluster has, and the one that tells of new kinds.
func (s *Store) always() []*source {
	nodes := builtIn(s.clients.core, coreV1, "nodes", func() runtime.Object { return &corev1.NodeList{} }, reduceNode)
	nodes.kind = model.KindNode
	pods := builtIn(s.clients.core, coreV1, "pods", func() runtime.Object { return &corev1.PodList{} }, s.texts.reducePod)
	pods.kind, pods.selector = model.KindEndpoint, livePods
	return []*source{
		nodes, pods,
		s.builtInResource(s.clients.core, coreV1, "namespaces", "Namespace", func() runtime.Object { return &corev1.NamespaceList{} }),
		s.builtInResource(s.clients.policy, networkV1, "networkpolicies", "NetworkPolicy", func() runtime.Object { return &networkingv1.NetworkPolicyList{} }),
		s.definitions(),
	}
}

func (s *Store) builtInResource(c rest.Interface, gv schema.GroupVersion, resource, kind string, empty func() runtime.Object) *source {
	src := builtIn(c, gv, resource, empty, s.texts.reduceBuiltIn)
	src.kind, src.prefix = model.KindResource, prefixOf(gv.String(), kind)
	return src
}

// prefixOf is what the keys of all resources of a kind begin with.
func prefixOf(apiVersion, kind string) string {
	return strings.TrimSuffix((&model.Resource{APIVersion: apiVersion, Type: kind}).Key(), ":")
}

// definitions tells when a kind of policy may have come or gone. Without it a look now and then finds out.
func (s *Store) definitions() *source {
	gvr := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	c := s.clients.metadata.Resource(gvr)
	return &source{
		resource: gvr, optional: true,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, o)
		},
		reduce: func(o runtime.Object) *thin {
			m, ok := o.(metav1.Object)
			if !ok {
				return &thin{}
			}
			return &thin{name: m.GetName(), version: m.GetResourceVersion()}
		},
		heard: func(name string) {
			if _, group, _ := strings.Cut(name, "."); group == clusterV1.Group || group == blockV1.Group || calicoGroup(group) {
				poke(s.poke)
			}
		},
	}
}

// custom is a source of a kind that may or may not be served.
func (s *Store) custom(k dialect.Kind) *source {
	gv, _ := schema.ParseGroupVersion(k.APIVersion) // of our own table
	kind := model.KindResource
	if k.Setting {
		kind = model.KindSetting
	}
	c := s.clients.dynamic.Resource(gv.WithResource(k.Plural))
	return &source{
		resource: gv.WithResource(k.Plural), kind: kind, optional: true, prefix: prefixOf(k.APIVersion, k.Kind),
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, o)
		},
		reduce: s.texts.reduceCustom(k.APIVersion, k.Kind, k.Setting),
	}
}
