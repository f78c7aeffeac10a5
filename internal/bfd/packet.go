package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Ports of control packets (RFC 5881 section 4, RFC 5883 section 5).
const (
	singleHopPort = 3784
	multihopPort  = 4784
)

// packetSize is that of a control packet without authentication section, the only kind that is sent.
const packetSize = 24

// Diag is why a session left Up last, as told to the other side (RFC 5880 section 4.1).
type Diag uint8

// The diagnostics that are sent.
const (
	diagNone      Diag = 0
	diagExpired   Diag = 1
	diagSignaled  Diag = 3
	diagAdminDown Diag = 7
)

func (d Diag) String() string {
	names := [...]string{
		"no diagnostic", "control detection time expired", "echo function failed", "neighbor signaled session down",
		"forwarding plane reset", "path down", "concatenated path down", "administratively down",
		"reverse concatenated path down",
	}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Packet is a control packet (RFC 5880 section 4.1). Intervals have a resolution of a microsecond and are at
// most 2^32-1 of them.
type Packet struct {
	State       State
	Diag        Diag
	Poll, Final bool
	Independent bool // the sender's BFD outlives its control plane
	Demand      bool
	Multiplier  uint8
	Mine, Yours uint32 // discriminators, as the sender sees them
	MinTx       time.Duration
	MinRx       time.Duration
	MinEchoRx   time.Duration
}

// The bits of a packet's second byte, below the state.
const (
	bitPoll        = 0x20
	bitFinal       = 0x10
	bitIndependent = 0x08
	bitAuth        = 0x04
	bitDemand      = 0x02
	bitMultipoint  = 0x01
)

// errAuth is told to people: both sides are well, but one asks for what the other does not speak.
var errAuth = errors.New("packet asks for authentication, which is not spoken here")

// Marshal is the packet as on the wire.
func (p Packet) Marshal() []byte {
	b := make([]byte, packetSize)
	b[0] = 1<<5 | byte(p.Diag)&0x1f
	b[1] = byte(p.State&3) << 6
	for bit, set := range map[byte]bool{bitPoll: p.Poll, bitFinal: p.Final, bitIndependent: p.Independent, bitDemand: p.Demand} {
		if set {
			b[1] |= bit
		}
	}
	b[2], b[3] = p.Multiplier, packetSize
	binary.BigEndian.PutUint32(b[4:], p.Mine)
	binary.BigEndian.PutUint32(b[8:], p.Yours)
	binary.BigEndian.PutUint32(b[12:], micros(p.MinTx))
	binary.BigEndian.PutUint32(b[16:], micros(p.MinRx))
	binary.BigEndian.PutUint32(b[20:], micros(p.MinEchoRx))
	return b
}

// Parse reads a packet, and refuses those that RFC 5880 section 6.8.6 says must be discarded before a session
// is looked for; and, as no session here uses authentication, those that carry one.
func Parse(b []byte) (Packet, error) {
	if len(b) < packetSize {
		return Packet{}, fmt.Errorf("packet of %d bytes: want at least %d", len(b), packetSize)
	}
	p := Packet{
		State: State(b[1] >> 6), Diag: Diag(b[0] & 0x1f),
		Poll: b[1]&bitPoll != 0, Final: b[1]&bitFinal != 0,
		Independent: b[1]&bitIndependent != 0, Demand: b[1]&bitDemand != 0,
		Multiplier: b[2],
		Mine:       binary.BigEndian.Uint32(b[4:]), Yours: binary.BigEndian.Uint32(b[8:]),
		MinTx: interval(b[12:]), MinRx: interval(b[16:]), MinEchoRx: interval(b[20:]),
	}
	size, least := int(b[3]), packetSize
	if b[1]&bitAuth != 0 {
		least += 2
	}
	switch {
	case b[0]>>5 != 1:
		return Packet{}, fmt.Errorf("packet of version %d: want 1", b[0]>>5)
	case size < least || size > len(b):
		return Packet{}, fmt.Errorf("packet of %d bytes with length %d: want %d..%d", len(b), size, least, len(b))
	case p.Multiplier == 0:
		return Packet{}, errors.New("packet with detection multiplier 0")
	case b[1]&bitMultipoint != 0:
		return Packet{}, errors.New("packet with the multipoint bit")
	case p.Mine == 0:
		return Packet{}, errors.New("packet without the sender's discriminator")
	case p.Yours == 0 && p.State != Down && p.State != AdminDown:
		return Packet{}, fmt.Errorf("packet in state %s without the receiver's discriminator", p.State)
	case b[1]&bitAuth != 0:
		return Packet{}, errAuth
	}
	return p, nil
}

func interval(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Microsecond
}

func micros(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), math.MaxUint32))
}
