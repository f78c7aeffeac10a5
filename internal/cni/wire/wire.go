// Package wire is the framing between the plugin and the agent: one request and one answer on a
// stream socket. It holds nothing but byte layouts, so that the plugin stays small and starts fast.
//
// A frame is the four bytes "HDL" and the version, the payload's length (32 bits, big endian), and the
// payload: fields, each its length (32 bits, big endian) and its bytes. The network namespace goes as
// SCM_RIGHTS (unix(7)) with the request's first byte.
package wire

import (
	"encoding/binary"
	"time"
)

// Limits of what either side takes, in bytes.
const (
	HeaderSize  = 8
	MaxField    = 8 << 10 // an environment variable
	MaxStdin    = 1 << 20
	MaxRequest  = MaxStdin + 7*MaxField + 8*4
	MaxResponse = 8 << 20
)

// DefaultSocket is where an agent listens unless told otherwise.
const DefaultSocket = "/run/heddle/cni.sock"

// ReadyFile is what an agent touches from time to time, in its socket's folder, while pods can be added, and removes
// when they cannot be any more. It outlives the agent: for ReadyFor after the last touch, STATUS says that all is
// well although no agent answers, or one that has just started. A runtime takes its whole node for not ready else, and
// Services lose the pods of a node whose agent is replaced; an ADD waits for the agent, or is tried again.
const (
	ReadyFile = "ready"
	ReadyFor  = 2 * time.Minute
)

// Versions are the versions of the CNI specification that Heddle speaks, oldest first.
func Versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Codes of the CNI specification that the plugin itself answers with.
const (
	CodeInvalidEnvironment = 4
	CodeIO                 = 5
	CodeDecode             = 6
	CodeTryAgainLater      = 11
	CodeNotAvailable       = 50
)

const magic = "HDL\x01"

// Request is what the runtime gave the plugin.
type Request struct {
	Command     string // CNI_COMMAND
	ContainerID string // CNI_CONTAINERID
	Netns       string // CNI_NETNS, a path
	NetnsError  string // why that path could not be opened; empty when it could or need not
	IfName      string // CNI_IFNAME
	Args        string // CNI_ARGS
	Path        string // CNI_PATH
	Stdin       []byte
}

// Response is what the plugin does then.
type Response struct {
	Exit   byte
	Stdout []byte
}

// Error is why bytes are not a frame.
type Error string

func (e Error) Error() string { return "cni frame: " + string(e) }

// strings are the request's short fields in the order of the wire.
func (r *Request) strings() [7]*string {
	return [7]*string{&r.Command, &r.ContainerID, &r.Netns, &r.NetnsError, &r.IfName, &r.Args, &r.Path}
}

// Oversize names the first field that is larger than the wire takes; "" when all fit.
func (r *Request) Oversize() string {
	names := [7]string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"}
	for i, f := range r.strings() {
		if len(*f) > MaxField {
			return names[i]
		}
	}
	if len(r.Stdin) > MaxStdin {
		return "standard input"
	}
	return ""
}

// AppendFrame appends the request as a frame. The caller has asked Oversize.
func (r *Request) AppendFrame(b []byte) []byte {
	start := len(b)
	b = append(b, magic+"\x00\x00\x00\x00"...)
	for _, f := range r.strings() {
		b = binary.BigEndian.AppendUint32(b, uint32(len(*f))) //nolint:gosec // bounded by Oversize
		b = append(b, *f...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Stdin))) //nolint:gosec // bounded by Oversize
	b = append(b, r.Stdin...)
	return sealed(b, start)
}

// AppendFrame appends the response as a frame.
func (r *Response) AppendFrame(b []byte) []byte {
	start := len(b)
	b = append(b, magic+"\x00\x00\x00\x00"...)
	b = append(b, r.Exit)
	b = append(b, r.Stdout...)
	return sealed(b, start)
}

func sealed(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start+4:], uint32(len(b)-start-HeaderSize)) //nolint:gosec // bounded by the limits
	return b
}

// PayloadSize reads a frame's header and returns the length of what follows, at most limit.
func PayloadSize(header []byte, limit int) (int, error) {
	if len(header) != HeaderSize || string(header[:3]) != magic[:3] {
		return 0, Error("not a heddle frame")
	}
	if header[3] != magic[3] {
		return 0, Error("plugin and agent are of different versions: install both from one release")
	}
	n := binary.BigEndian.Uint32(header[4:])
	if uint64(n) > uint64(limit) { //nolint:gosec // limits are positive
		return 0, Error("larger than its limit")
	}
	return int(n), nil
}

// ParseRequest reads a request's payload. Stdin shares the payload's memory.
func ParseRequest(payload []byte) (Request, error) {
	var r Request
	for _, f := range r.strings() {
		v, rest, err := field(payload, MaxField)
		if err != nil {
			return Request{}, err
		}
		*f, payload = string(v), rest
	}
	v, rest, err := field(payload, MaxStdin)
	if err != nil {
		return Request{}, err
	}
	if len(rest) != 0 {
		return Request{}, Error("bytes after the last field")
	}
	r.Stdin = v
	return r, nil
}

// ParseResponse reads a response's payload. Stdout shares the payload's memory.
func ParseResponse(payload []byte) (Response, error) {
	if len(payload) == 0 {
		return Response{}, Error("no exit code")
	}
	return Response{Exit: payload[0], Stdout: payload[1:]}, nil
}

func field(b []byte, limit uint32) (value, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, Error("cut off before a field")
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if n > limit {
		return nil, nil, Error("a field is larger than its limit")
	}
	if uint64(n) > uint64(len(b)) {
		return nil, nil, Error("cut off in a field")
	}
	return b[:n:n], b[n:], nil
}
