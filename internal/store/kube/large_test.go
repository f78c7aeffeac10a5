//go:build kube

package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store/kube"
)

const (
	largeNodes, largePods = 1000, 30000
	// childEnv makes this test binary a process that only opens a store, and says what that took.
	childEnv = "HEDDLE_KUBE_TEST_CHILD"
)

// taken is what a store took, in bytes and milliseconds.
type taken struct {
	HeapBefore, HeapAfter  uint64 // in use
	PeakBefore, PeakAtSync uint64 // resident
	ResidentAfter          uint64 // when unused memory was given back
	SyncMillis, Endpoints  int64
}

func status(field string) uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// child is the process.
func child(kubeconfig string) error {
	debug.SetGCPercent(25) // as the agent does
	var t taken
	t.HeapBefore, t.PeakBefore = heap(), status("VmHWM")
	begin := time.Now()
	s, err := kube.New(context.Background(), kube.Options{Kubeconfig: kubeconfig, Node: "node-00001", Pools: []model.Pool{pool()}})
	if err != nil {
		return err
	}
	if err := count(s, &t); err != nil {
		return err
	}
	t.SyncMillis, t.PeakAtSync = time.Since(begin).Milliseconds(), status("VmHWM")
	t.HeapAfter = heap()
	debug.FreeOSMemory()
	t.ResidentAfter = status("VmRSS")
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		return err
	}
	runtime.KeepAlive(s)
	return s.Close()
}

func count(s *kube.Store, t *taken) error {
	items, _, err := s.List(context.Background(), model.KindPool, model.KindNode, model.KindBlock, model.KindEndpoint, model.KindResource)
	for _, it := range items {
		if it.Object.Kind() == model.KindEndpoint {
			t.Endpoints++
		}
	}
	return err
}

// largePod is as large as those of real clusters: about 4 KiB.
func largePod(i int) *corev1.Pod {
	node := i % largeNodes
	app := i % 300
	p := pod(fmt.Sprintf("ns-%d", app%100), fmt.Sprintf("app-%d-6d4cf56db6-%05d", app, i), fmt.Sprintf("node-%05d", node),
		fmt.Sprintf("10.%d.%d.%d", 128+node>>8, node&255, 2+i/largeNodes),
		map[string]string{
			"app.kubernetes.io/name": fmt.Sprintf("app-%d", app), "app.kubernetes.io/part-of": "shop", "app.kubernetes.io/managed-by": "Helm",
			"pod-template-hash": fmt.Sprintf("6d4cf%d", app), "tier": "web",
		})
	p.UID, p.Status.HostIP = types.UID(fmt.Sprintf("5d2b0c6e-90aa-4f0c-8a55-%012d", i)), "10.1.0.1"
	p.CreationTimestamp = metav1.Now()
	p.Annotations = map[string]string{"checksum/config": strings.Repeat("ab", 32), "kubectl.kubernetes.io/restartedAt": "2026-01-02T03:04:05Z"}
	p.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: "kube-controller-manager", Operation: "Update", FieldsV1: metav1.NewFieldsV1(`{"f:metadata":` + strings.Repeat(" ", 900) + `{}}`)},
		{Manager: "kubelet", Operation: "Update", Subresource: "status", FieldsV1: metav1.NewFieldsV1(`{"f:status":` + strings.Repeat(" ", 700) + `{}}`)},
	}
	c := &p.Spec.Containers[0]
	c.Image = "registry.example.com/shop/app@sha256:" + strings.Repeat("0", 64)
	c.Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}
	for j := range 12 {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", j), Value: "https://service.of.the.shop.example.com/" + fmt.Sprint(j)})
	}
	for j := range 4 {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: fmt.Sprint("v", j), MountPath: fmt.Sprint("/var/run/volumes/", j)})
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprint("v", j), VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodConditionType(fmt.Sprint("Condition", j)), Status: "True", LastTransitionTime: metav1.Now()})
	}
	side := *c
	side.Name, side.Ports = "sidecar", nil
	p.Spec.Containers = append(p.Spec.Containers, side)
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: "containerd://" + strings.Repeat("0", 64), Ready: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		})
	}
	return p
}

func largeNode(i int) *corev1.Node {
	n := &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%05d", i), UID: types.UID(fmt.Sprint("n", i)), CreationTimestamp: metav1.Now(), Annotations: map[string]string{
			kube.NodeAnnotation: fmt.Sprintf(`{"name":"node-%05d","id":"x","address4":"10.1.%d.%d","accepts":["vxlan"],"sends":["vxlan"],"vtep4":"02:00:00:00:%02x:%02x","version":"1"}`, i, i>>8, i&255, i>>8, i&255),
		}},
		Spec: corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", 128+i>>8, i&255)}},
	}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	for j := range 50 { // what a kubelet tells by default
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example.com/shop/app-%d@sha256:%s", j, strings.Repeat("0", 64)), fmt.Sprintf("registry.example.com/shop/app-%d:v1.2.3", j)}, SizeBytes: 1 << 27})
	}
	for j := range 5 {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeConditionType(fmt.Sprint("Condition", j)), Status: "True", Reason: "KubeletIsFine", Message: "the kubelet is fine as far as it knows"})
	}
	return n
}

// fill writes into the API server's own etcd, as creating so many over the API takes minutes.
func (l *lab) fill(t testing.TB) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{l.etcd.URL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	scheme := kruntime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	codec := protobuf.NewSerializer(scheme, scheme)
	var ops []clientv3.Op
	bytesOfPods := 0
	flush := func() {
		t.Helper()
		if _, err := c.Txn(context.Background()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
		ops = nil
	}
	put := func(key string, o kruntime.Object) {
		t.Helper()
		var b bytes.Buffer
		if err := codec.Encode(o, &b); err != nil {
			t.Fatal(err)
		}
		bytesOfPods += b.Len()
		if ops = append(ops, clientv3.OpPut("/registry/"+key, b.String())); len(ops) == 100 {
			flush()
		}
	}
	for i := range largeNodes {
		put(fmt.Sprintf("minions/node-%05d", i), largeNode(i))
	}
	for i := range 100 {
		put(fmt.Sprintf("namespaces/ns-%d", i), &corev1.Namespace{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns-%d", i), Labels: map[string]string{"kubernetes.io/metadata.name": fmt.Sprintf("ns-%d", i)}},
		})
	}
	flush()
	bytesOfPods = 0
	for i := range largePods {
		p := largePod(i)
		put("pods/"+p.Namespace+"/"+p.Name, p)
	}
	flush()
	t.Logf("%d pods of %d bytes on average", largePods, bytesOfPods/largePods)
}

// TestLargeClusterFitsIntoAnAgent: 1,000 nodes and 30,000 pods, and what of it passes over the wire.
func TestLargeClusterFitsIntoAnAgent(t *testing.T) {
	l := newLab(t)
	l.fill(t)
	// The server learns from its etcd what was written behind its back.
	until(t, "the server's own memory", func() bool {
		p := largePod(largePods - 1) // the last one
		_, err := l.admin.Resource(pods).Namespace(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{ResourceVersion: "0"})
		return err == nil
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, config := l.wired(t)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+config)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got taken
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const mib = 1 << 20
	t.Logf("in sync after %d ms; heap in use %.1f MiB, before %.1f; resident peak %.1f MiB, before %.1f; resident afterwards %.1f",
		got.SyncMillis, float64(got.HeapAfter)/mib, float64(got.HeapBefore)/mib, float64(got.PeakAtSync)/mib, float64(got.PeakBefore)/mib, float64(got.ResidentAfter)/mib)
	if got.Endpoints != largePods {
		t.Fatalf("%d pods, want %d", got.Endpoints, largePods)
	}
	if own := got.HeapAfter - got.HeapBefore; own > 30*mib {
		t.Errorf("the store holds %.1f MiB, want at most 30", float64(own)/mib)
	}
	if got.PeakAtSync > 110*mib {
		t.Errorf("resident size came to %.1f MiB, want at most 110", float64(got.PeakAtSync)/mib)
	}
	// What a change costs each agent.
	w, s := l.over(t, kube.Options{Node: "node-00001", Pools: []model.Pool{pool()}})
	if err := count(s, &taken{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the first list took %.1f MiB", float64(w.received.Load())/mib)
	per := func(what string, n int, change func(i int), last func() bool) {
		t.Helper()
		before := w.received.Load()
		for i := range n {
			change(i)
		}
		until(t, what, last)
		t.Logf("%s: %d bytes each", what, (w.received.Load()-before)/int64(n))
	}
	per("a kubelet's status of its node", 50, func(i int) {
		l.patch(t, nodes, "", fmt.Sprintf("node-%05d", i), fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":"10.1.0.%d"}]}}`, i), "status")
	}, func() bool { return len(s.NodeAddresses("node-00049")) > 0 })
	mark := func(i int) string { return "marked-" + fmt.Sprint(i) }
	per("a change of a pod", 50, func(i int) {
		p := largePod(i)
		l.patch(t, pods, p.Namespace, p.Name, `{"metadata":{"labels":{"mark":"`+mark(i)+`"}}}`)
	}, func() bool {
		p := largePod(49)
		it, err := s.Get(context.Background(), model.KindEndpoint, p.Spec.NodeName+":"+p.Namespace+":"+p.Name)
		return err == nil && it.Object.(*model.Endpoint).Labels["mark"] == mark(49)
	})
	before := w.received.Load()
	time.Sleep(10 * time.Second)
	t.Logf("at rest: %.1f bytes per second", float64(w.received.Load()-before)/10)
}
