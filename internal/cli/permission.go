package cli

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// needNetAdmin says at once what would otherwise come back from the kernel in many words: without
// CAP_NET_ADMIN nothing of the network can be changed.
func needNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 64 capabilities
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capabilities of this process: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("no permission to change the network: want root with CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN)")
	}
	return nil
}

// certHint adds what to do next to the two errors that beginners meet.
func certHint(err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: --overwrite replaces it", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: `heddle cert ca` makes it", err)
	}
	return err
}
