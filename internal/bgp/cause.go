package bgp

import (
	"fmt"
	"strings"

	"github.com/osrg/gobgp/v4/api"
)

// notifications are the errors of RFC 4271 section 4.5 and of RFC 4486 in words, by code and subcode.
var notifications = map[string]string{
	"1/1":  "messages got out of step (connection not synchronized)",
	"1/2":  "a message had a length that cannot be",
	"1/3":  "a message was of a type that is not known",
	"2/1":  "BGP version 4 is not spoken there",
	"2/2":  "the AS in the OPEN message is another than was expected",
	"2/3":  "the router id in the OPEN message is wrong: 0.0.0.0, or the same on both sides",
	"2/4":  "a parameter of the OPEN message is not supported",
	"2/6":  "the hold time is not acceptable",
	"2/7":  "a capability that is required is not supported",
	"2/8":  "the role is not the one that was expected",
	"3/1":  "an UPDATE message had attributes that make no sense",
	"3/2":  "a well-known attribute was not recognized",
	"3/3":  "a mandatory attribute was missing",
	"3/4":  "an attribute had flags that cannot be",
	"3/5":  "an attribute had a length that cannot be",
	"3/6":  "the ORIGIN attribute was invalid",
	"3/8":  "the next hop was invalid",
	"3/9":  "an optional attribute was in error",
	"3/10": "a prefix made no sense",
	"3/11": "the AS path made no sense",
	"4/0":  "the hold timer expired: nothing was heard for too long",
	"5/1":  "a message came that does not belong there (in OpenSent)",
	"5/2":  "a message came that does not belong there (in OpenConfirm)",
	"5/3":  "a message came that does not belong there (in Established)",
	"6/1":  "too many prefixes",
	"6/2":  "shut down by its administrator",
	"6/3":  "the session is configured there no more",
	"6/4":  "reset by its administrator",
	"6/5":  "the connection was rejected: it is not configured there, or was refused for now",
	"6/6":  "its configuration changed",
	"6/7":  "two connections met, and the other one stays",
	"6/8":  "out of resources",
	"6/9":  "hard reset",
	"6/10": "liveness detection (BFD) lost it",
}

func notification(code, subcode, communicated string) string {
	s := notifications[code+"/"+subcode]
	if s == "" {
		s = fmt.Sprintf("error %s.%s", code, subcode)
	}
	if communicated != "" {
		s += fmt.Sprintf(" (%q)", communicated)
	}
	return s
}

const (
	endedHere    = "this node ended it: "
	closedCause  = "the neighbor took the connection and closed it at once: it does not want this node, or is not ready"
	endCause     = "the connection ended without a word from the neighbor"
	crossedCause = endedHere + "its last word of the opening did not come, as when two connections cross"
	awayCause    = "it did not come back in its restart time"
	stateCause   = "a message came that does not belong there"
)

// vague are causes that say little.
func vague(cause string) bool {
	return cause == closedCause || cause == endCause || cause == stateCause
}

// timeoutCause is told where packets get no answer. The kernel drops packets with a wrong signature (RFC 2385), so
// nobody tells that two passwords differ.
const timeoutCause = "no answer: packets are lost, or the neighbor does not exist"

// dialCause is what net.Dial says in words.
func dialCause(err string) string {
	for what, words := range map[string]string{
		"connection refused":               "refused: nothing listens on that port there",
		"i/o timeout":                      timeoutCause,
		"no route to host":                 "no route to it, or its link layer address is not found",
		"network is unreachable":           "no route to its network",
		"connection reset":                 "the neighbor reset the connection",
		"cannot assign requested address":  "the source address is not on this node",
		"permission denied":                "the kernel does not permit it",
		"address already in use":           "the local port is in use",
		"invalid argument":                 "the kernel refuses the source address or the password",
		"key has been rejected by service": "the neighbor's packets carry no or another password (TCP MD5)",
	} {
		if strings.Contains(err, what) {
			return words
		}
	}
	return err
}

// left is why a session ended where the log said nothing better; "" when that is no failure.
func left(r api.PeerState_DisconnectReason, words string) string {
	switch r {
	case api.PeerState_DISCONNECT_REASON_UNSPECIFIED, api.PeerState_DISCONNECT_REASON_IDLE_TIMER_EXPIRED:
		return ""
	case api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED:
		return "the hold timer expired: nothing was heard for too long"
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		return endCause
	case api.PeerState_DISCONNECT_REASON_WRITE_FAILED:
		return "nothing could be sent to the neighbor"
	case api.PeerState_DISCONNECT_REASON_RESTART_TIMER_EXPIRED:
		return awayCause
	case api.PeerState_DISCONNECT_REASON_INVALID_MSG:
		return stateCause
	case api.PeerState_DISCONNECT_REASON_BAD_PEER_AS:
		return wrongAS
	case api.PeerState_DISCONNECT_REASON_DECONFIGURED, api.PeerState_DISCONNECT_REASON_ADMIN_DOWN:
		return ""
	}
	return strings.ReplaceAll(words, "-", " ")
}
