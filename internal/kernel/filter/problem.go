package filter

import (
	"errors"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
)

// Codes of the driver's problems: those of everything that is done with nftables.
const (
	codePermission  = "nft-permission"
	codeUnsupported = "nft-unsupported"
	codeFailed      = "nft-failed"
)

func tableText(t *tableSpec) string {
	if t.family == nftables.TableFamilyBridge {
		return "bridge " + TableName
	}
	return "inet " + TableName
}

// problemOf says what an error means for whoever runs the node: that policy may not be what it should be.
func problemOf(err error) model.Problem {
	p := model.Problem{
		Code: codeFailed, Severity: model.Failure, Subject: "policy in the kernel", Detail: err.Error(),
		Next: "nft list table inet " + TableName,
	}
	switch {
	case errors.Is(err, unix.EPERM):
		p.Code, p.Detail = codePermission, "changing the packet filter needs CAP_NET_ADMIN, and that no other agent runs here: "+err.Error()
		p.Next = "run one heddle agent as root"
	case errors.Is(err, errNone):
		p.Code, p.Next = codeUnsupported, "modprobe nf_tables"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		p.Code, p.Detail = codeUnsupported, "the kernel lacks a part of nftables that policy needs: "+err.Error()
		p.Next = "modprobe -a nf_tables nfnetlink_log nft_log nft_limit nft_ct"
	}
	return p
}
