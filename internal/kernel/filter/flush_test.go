package filter

import (
	"errors"

	"golang.org/x/sys/unix"
)

// conntrackFlush takes out all tracked connections.
func conntrackFlush(s space) {
	s.t.Helper()
	d := s.driver(false)
	must(s.t, d.open())
	const deleteAll = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	for range 10 {
		m := &message{}
		at := m.typed(deleteAll, unix.NLM_F_REQUEST|unix.NLM_F_ACK, unix.AF_UNSPEC, 0)
		m.end(at)
		must(s.t, d.c.send(m.b))
		var answer error
		_, err := d.c.receive(func(h unix.NlMsghdr, b []byte) bool { answer = ackError(h, b); return true })
		must(s.t, err)
		if !errors.Is(answer, unix.EINTR) { // a table that is being read or changed
			must(s.t, answer)
			return
		}
	}
	s.t.Fatal("the connections cannot be forgotten")
}

// tracked are the tuples of tracked connections, as the kernel prints them.
func (s space) tracked() string {
	s.t.Helper()
	return s.run("cat", "/proc/net/nf_conntrack")
}
