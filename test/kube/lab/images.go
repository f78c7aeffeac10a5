package lab

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/test/kube/image"
)

// The references under which upstream's tests ask for images, once KUBE_TEST_REPO_LIST has sent every
// registry to lab.local (test/utils/image/manifest.go of Kubernetes 1.36).
var (
	agnhostNames = []string{
		"lab.local/agnhost:2.63.0", "lab.local/agnhost:2.55", "lab.local/agnhost:2.6",
		"lab.local/e2e-test-images/agnhost:2.43", "lab.local/glibc-dns-testing:2.0.0",
	}
	busyboxNames = []string{"lab.local/busybox:1.37.0-1", "lab.local/busybox:1.36.1-1"}
	pauseNames   = []string{"lab.local/pause:lab", "lab.local/pause:3.10.2"}
)

// HeddleImage is the image that deploy/heddle.yaml names.
const HeddleImage = "heddle.local/heddle:dev"

// users of upstream's agnhost image, which tests of security contexts name.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n"
	group  = "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
)

// makeImages writes the images that every node loads.
func (l *Lab) makeImages() error {
	if err := os.Mkdir(l.path("images"), 0o755); err != nil {
		return err
	}
	agnhost, err := l.agnhost()
	if err != nil {
		return err
	}
	shell, err := busybox("sh", "nc")
	if err != nil {
		return err
	}
	images := []image.Image{
		{Names: pauseNames, Entrypoint: []string{"/pause"}, User: "65535:65535", Files: []image.File{{Path: "/pause", Source: l.bin("pause")}}},
		{Names: []string{"lab.local/coredns:lab"}, Entrypoint: []string{"/coredns"}, Files: []image.File{
			{Path: "/coredns", Source: l.bin("coredns")}, {Path: "/etc"},
		}},
		{Names: busyboxNames, Cmd: []string{"sh"}, Files: append(shell, image.File{Path: "/tmp"}, image.File{Path: "/etc"}, image.File{Path: "/root"})},
		agnhost,
	}
	policy, err := l.policyAgnhost()
	if err != nil {
		return err
	}
	images = append(images, policy...)
	if l.Spec.Programs != "" {
		images = append(images, Ours(l.Spec.Programs))
	}
	for n, i := range images {
		if err := image.Write(l.path("images", fmt.Sprintf("%d.tar", n)), i); err != nil {
			return err
		}
	}
	return nil
}

// Ours is Heddle's own image: its two programs, nothing else.
func Ours(programs string) image.Image {
	return image.Image{Names: []string{HeddleImage}, Entrypoint: []string{"/heddle"}, Files: []image.File{
		{Path: "/heddle", Source: filepath.Join(programs, "heddle")},
		{Path: "/heddle-cni", Source: filepath.Join(programs, "heddle-cni")},
	}}
}

// agnhost is upstream's test image: its program, and the programs of this machine that tests call in it.
func (l *Lab) agnhost() (image.Image, error) {
	i := image.Image{Names: agnhostNames, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}}
	tools, err := image.Programs(found("curl"), found("dig"), found("iperf"), found("ip"), found("getent"),
		found("bash"), found("dash"), found("nc.openbsd"))
	if err != nil {
		return i, err
	}
	// nc and sh: busybox's nc has no -t, and its sh runs its own applets instead of what is on the path.
	applets, err := busybox("bash", "ip", "getent", "dash")
	if err != nil {
		return i, err
	}
	applets = slices.DeleteFunc(applets, func(f image.File) bool { return f.Path == "/bin/sh" || f.Path == "/bin/nc" })
	i.Files = slices.Concat(tools, applets, []image.File{
		{Path: "/agnhost", Source: l.bin("agnhost")},
		{Path: "/agnhost-2", Link: "agnhost"},
		{Path: "/coredns", Source: l.bin("coredns")},
		{Path: "/localhost.crt", Source: l.bin("localhost.crt")},
		{Path: "/localhost.key", Source: l.bin("localhost.key")},
		{Path: "/etc/passwd", Text: passwd},
		{Path: "/etc/group", Text: group},
		{Path: "/tmp"},
		{Path: "/var/run"},
		{Path: "/uploads"},
	}, under("/bin/sh", "dash"), under("/bin/bash", "bash"), under("/bin/nc", "nc.openbsd"))
	return i, nil
}

var imageLine = regexp.MustCompile(`image: *(\S*agnhost\S*)`)

// withSCTP is agnhost with the two calls that need SCTP sockets done without.
const withSCTP = `#!/bin/sh
if [ ! -e /proc/net/sctp ]; then
	ports=$(env | sed -n 's/^SERVE_SCTP_PORT_\([0-9]*\)=.*/\1/p')
	if [ "$1" = porter ] && [ -n "$ports" ]; then exec /sctp serve $ports; fi
	if [ "$1" = connect ] && [ "$3" = --protocol=sctp ]; then exec /sctp connect "${2#--timeout=}" "$4"; fi
fi
exec /agnhost.real "$@"
`

// policyAgnhost is agnhost under the references that the manifests of network-policy-api's suite name, if
// that suite was built. Its pods open SCTP associations and answer those of others: where the kernel has
// no SCTP sockets, command sctp does it for them.
func (l *Lab) policyAgnhost() ([]image.Image, error) {
	i := image.Image{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}}
	err := filepath.WalkDir(l.bin("network-policy-api"), func(p string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(p) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(p)
		for _, m := range imageLine.FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(i.Names, m[1]) {
				i.Names = append(i.Names, m[1])
			}
		}
		return err
	})
	if _, missing := os.Stat(l.bin("network-policy-api")); missing != nil {
		return nil, nil
	}
	if err != nil || len(i.Names) == 0 {
		return nil, err
	}
	shell, err := image.Programs(found("bash"))
	if err != nil {
		return nil, err
	}
	applets, err := busybox("bash")
	if err != nil {
		return nil, err
	}
	i.Files = slices.Concat(shell, applets, []image.File{
		{Path: "/agnhost.real", Source: l.bin("agnhost")},
		{Path: "/sctp", Source: l.bin("sctp")},
		{Path: "/agnhost", Text: withSCTP},
		{Path: "/tmp"},
	}, under("/bin/bash", "bash"))
	return []image.Image{i}, nil
}

// busybox is the static busybox with a link for each applet that is not left out.
func busybox(leaveOut ...string) ([]image.File, error) {
	at := found("busybox")
	out, err := exec.Command(at, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	files := []image.File{{Path: "/bin/busybox", Source: at}}
	for _, applet := range strings.Fields(string(out)) {
		switch {
		case applet == "busybox" || slices.Contains(leaveOut, applet):
		default:
			files = append(files, image.File{Path: "/bin/" + applet, Link: "/bin/busybox"})
		}
	}
	return files, nil
}

// under is a link by which a program of this machine is also found at another path.
func under(path, program string) []image.File {
	if at := found(program); at != path {
		return []image.File{{Path: path, Link: at}}
	}
	return nil // it lies there
}

// found is where a program lies; its bare name if it is not installed, so that the error names it.
func found(program string) string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	return program
}

// Load gives every node one more image, or a newer one of the same name.
func (l *Lab) Load(ctx context.Context, tar string) error {
	// Nodes have a /tmp of their own: they see the lab's folder.
	text, err := os.ReadFile(tar)
	if err != nil {
		return err
	}
	name := l.path("images", "loaded-"+filepath.Base(tar))
	if err := os.WriteFile(name, text, 0o644); err != nil {
		return err
	}
	for _, node := range l.Nodes() {
		if _, err := l.Exec(ctx, node, "ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs", name); err != nil {
			return err
		}
	}
	return nil
}
