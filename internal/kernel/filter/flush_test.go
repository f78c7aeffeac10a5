package filter

import (
	"golang.org/x/sys/unix"
)

// conntrackFlush takes out all tracked connections.
func conntrackFlush(s space) {
	s.t.Helper()
	d := s.driver(false)
	must(s.t, d.open())
	m := &message{}
	const deleteAll = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	at := m.typed(deleteAll, unix.NLM_F_REQUEST|unix.NLM_F_ACK, unix.AF_UNSPEC, 0)
	m.end(at)
	must(s.t, d.c.send(m.b))
	_, err := d.c.receive(func(h unix.NlMsghdr, b []byte) bool { must(s.t, ackError(h, b)); return true })
	must(s.t, err)
}

// tracked are the tuples of tracked connections, as the kernel prints them.
func (s space) tracked() string {
	s.t.Helper()
	return s.run("cat", "/proc/net/nf_conntrack")
}
