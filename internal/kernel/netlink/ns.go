package netlink

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// CurrentNS stands for the network namespace that the process is in.
const CurrentNS = -1

// ownNS opens the namespace of the calling thread.
const ownNS = "/proc/thread-self/ns/net"

// Do runs f with the calling goroutine's thread in the network namespace of the handle ns, and
// brings the thread back. CurrentNS runs f where it is. f must not start goroutines that count on
// the namespace; sockets opened in f stay in it for good, and /proc/sys/net shows it while f runs.
//
// A thread that cannot return would act on the wrong network for whoever gets it next, so that is a
// panic; it needs a kernel that takes CAP_SYS_ADMIN away in between.
func Do(ns int, f func() error) error {
	if ns == CurrentNS {
		return f()
	}
	runtime.LockOSThread()
	home, err := unix.Open(ownNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the own network namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace (handle %d): %w", ns, err)
	}
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("netlink: return to the own network namespace: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	return f()
}
