package nft

import (
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// opaque is an expression of which only the name matters here.
type opaque string

// decodeExpr reads one expression of a rule: an *expr.X, or opaque. It keeps the name of what it does not
// know, so that no condition gets lost. Counters count, so their figures are left out.
func decodeExpr(family byte, ad *netlink.AttributeDecoder) (any, error) {
	var name string
	var data []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	}
	var e expr.Any
	switch name {
	case "meta":
		e = &expr.Meta{}
	case "cmp":
		e = &expr.Cmp{}
	case "payload":
		e = &expr.Payload{}
	case "bitwise":
		e = &expr.Bitwise{}
	case "lookup":
		e = &expr.Lookup{}
	case "masq":
		e = &expr.Masq{}
	case "fib":
		e = &expr.Fib{}
	case "ct":
		return decodeCt(data)
	case "nat":
		e = &expr.NAT{}
	case "counter":
		return &expr.Counter{}, nil
	case "immediate":
		imm := &expr.Immediate{}
		if err := expr.Unmarshal(family, data, imm); err != nil {
			return nil, fmt.Errorf("immediate: %w", err)
		}
		if imm.Register != unix.NFT_REG_VERDICT {
			return opaque(name), nil
		}
		e = &expr.Verdict{}
	case "match":
		e = &expr.Match{}
	case "target":
		e = &expr.Target{}
	default:
		return opaque(name), nil
	}
	if err := expr.Unmarshal(family, data, e); err != nil {
		return opaque(name), nil //nolint:nilerr // an extension in a form not known here: still a condition
	}
	if l, ok := e.(*expr.Lookup); ok {
		l.SetID = 0 // counts within a transaction only
	}
	return e, nil
}

// decodeCt reads what is loaded of a tracked connection. The library takes the direction for a longer number than
// it is.
func decodeCt(data []byte) (any, error) {
	e := &expr.Ct{}
	err := each(data, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_CT_KEY:
			e.Key = expr.CtKey(ad.Uint32())
		case unix.NFTA_CT_DREG:
			e.Register = ad.Uint32()
		case unix.NFTA_CT_SREG:
			e.Register, e.SourceRegister = ad.Uint32(), true
		case unix.NFTA_CT_DIRECTION:
			e.Direction = uint32(ad.Uint8())
		}
	})
	if err != nil {
		return nil, fmt.Errorf("ct: %w", err)
	}
	return e, nil
}
