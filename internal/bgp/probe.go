package bgp

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/peering"
)

// gobgp ends a session with a neighbour of another AS than was expected, and does not say which AS it is. So the
// neighbour is asked once more, on a connection of its own: it says its AS before it hears anything of ours but an
// OPEN message.

const (
	wrongAS = endedHere + "the AS in the OPEN message is another than was expected"
	askFor  = time.Minute // as long as BIRD rests after such an error
)

// ask finds out which AS a neighbour has that is not of the one that was expected. It returns at once. The session
// is not tried meanwhile: every try that fails makes the neighbour rest, and refuse the question too.
func (s *Server) ask(n *session) {
	again := 5 * time.Second
	if n.says.Load() != 0 {
		again = time.Minute
	}
	if time.Since(n.asked) < again || s.listener.noted(n.Address).text != wrongAS {
		return
	}
	if err := s.remove(n); err != nil {
		s.log.Error("cannot rest a BGP session", "neighbor", n.Address, "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(s.life, askFor)
	n.asked, n.held, n.asking = time.Now(), time.Now().Add(askFor), cancel
	who, plan := n.Neighbor, s.plan
	s.events.Go(func() {
		defer cancel()
		for {
			as, err := openOf(ctx, plan, &who)
			if err == nil {
				n.says.Store(as)
				n.answered.Store(true)
				s.change()
				return
			}
			s.log.Debug("the AS of a BGP neighbor is not known", "neighbor", who.Address, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second/4 + rand.N(time.Second/2)):
			}
		}
	})
}

// openOf is the AS in a neighbour's OPEN message.
func openOf(ctx context.Context, p *peering.Plan, n *peering.Neighbor) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if n.Password == "" {
			return nil
		}
		sig := signature(n.Address, string(n.Password))
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptTCPMD5Sig(int(fd), unix.IPPROTO_TCP, unix.TCP_MD5SIG_EXT, sig)
		}); e != nil {
			return e
		}
		return err
	}}
	if n.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.Source, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(n.Address, cmp.Or(n.Port, peering.DefaultPort)).String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, err
	}
	own := cmp.Or(n.LocalASN, p.ASN)
	short := uint16(bgp.AS_TRANS)
	if own <= 0xffff {
		short = uint16(own)
	}
	open, err := bgp.NewBGPOpenMessage(short, 90, p.RouterID, []bgp.OptionParameterInterface{
		bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{bgp.NewCapFourOctetASNumber(own)}),
	})
	if err != nil {
		return 0, err
	}
	b, err := open.Serialize()
	if err != nil {
		return 0, err
	}
	if _, err := conn.Write(b); err != nil {
		return 0, err
	}
	head := make([]byte, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, head); err != nil {
		return 0, err
	}
	var h bgp.BGPHeader
	if err := h.DecodeFromBytes(head); err != nil {
		return 0, err
	}
	if h.Type != bgp.BGP_MSG_OPEN || h.Len > bgp.BGP_MAX_MESSAGE_LENGTH {
		return 0, fmt.Errorf("message of type %d and length %d, where OPEN was expected", h.Type, h.Len)
	}
	body := make([]byte, int(h.Len)-bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(conn, body); err != nil {
		return 0, err
	}
	m, err := bgp.ParseBGPBody(&h, body)
	if err != nil {
		return 0, err
	}
	return asOf(m.Body.(*bgp.BGPOpen)), nil
}

// asOf is the AS that an OPEN message says (RFC 6793).
func asOf(o *bgp.BGPOpen) uint32 {
	for _, p := range o.OptParams {
		if caps, ok := p.(*bgp.OptionParameterCapability); ok {
			for _, c := range caps.Capability {
				if four, ok := c.(*bgp.CapFourOctetASNumber); ok {
					return four.CapValue
				}
			}
		}
	}
	return uint32(o.MyAS)
}

// signature is a password in the kernel's form (RFC 2385).
func signature(a netip.Addr, password string) *unix.TCPMD5Sig {
	sig := &unix.TCPMD5Sig{Keylen: uint16(min(len(password), unix.TCP_MD5SIG_MAXKEYLEN))}
	copy(sig.Key[:], password)
	if a.Is4() {
		sig.Addr.Family = unix.AF_INET
		copy(sig.Addr.Data[2:], a.AsSlice())
	} else {
		sig.Addr.Family = unix.AF_INET6
		copy(sig.Addr.Data[6:], a.AsSlice())
	}
	return sig
}
