package cli

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// netSysctls are the settings that the agent writes, in whatever network namespace its thread is.
const netSysctls = "/proc/sys/net"

// openNetSysctls makes the kernel's network settings writable for this container. Runtimes show all of
// /proc/sys read-only to a container that is not privileged, and know no other wish; with CAP_SYS_ADMIN, which
// entering pods' namespaces takes anyway, the container lays that one folder over itself, writable, in its own
// mount namespace. The rest stays read-only. Where the settings are writable already nothing happens.
func openNetSysctls() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(netSysctls, &fs); err != nil {
		return fmt.Errorf("%s: %w", netSysctls, err)
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	err := unix.Mount(netSysctls, netSysctls, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", netSysctls, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err != nil {
		return fmt.Errorf("%s is read-only here, as in containers, and cannot be made writable: %w (want CAP_SYS_ADMIN, and no AppArmor profile that forbids mounts)", netSysctls, err)
	}
	return nil
}
