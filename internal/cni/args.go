package cni

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// podArgs are what CNI_ARGS tells of a Kubernetes pod, and asks for.
type podArgs struct {
	namespace, name, uid string
	ips                  []netip.Addr
	mac                  string
}

// A pod's names and ids as they may come from outside. Kubernetes' own rules are narrower (RFC 1123);
// other runtimes fill the same arguments with their own names.
var argRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$`)

// parseArgs reads CNI_ARGS, "K=V;K2=V2". Unknown keys are refused unless IgnoreUnknown is set.
func parseArgs(s string) (podArgs, *Error) {
	var (
		p       podArgs
		unknown []string
		ignore  bool
	)
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return podArgs{}, argError(short(pair), "pairs K=V parted by semicolons")
		}
		switch key {
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false":
			default:
				return podArgs{}, argError(short(pair), "IgnoreUnknown 1, 0, true or false")
			}
		case "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID":
			if value != "" && !argRE.MatchString(value) {
				return podArgs{}, argError(short(pair), "1..253 characters of [A-Za-z0-9_.-] that begin and end with a letter or digit")
			}
			switch key {
			case "K8S_POD_NAMESPACE":
				p.namespace = value
			case "K8S_POD_NAME":
				p.name = value
			case "K8S_POD_UID":
				p.uid = value
			}
		case "IP":
			if p.ips, ok = parseAddrs(strings.FieldsFunc(value, func(r rune) bool { return r == ',' })); !ok {
				return podArgs{}, argError(short(pair), addressWant+", parted by a comma")
			}
		case "MAC":
			if p.mac, ok = parseMAC(value); !ok && value != "" {
				return podArgs{}, argError(short(pair), "a unicast MAC such as 1c:0c:0a:c0:ff:ee")
			}
		default:
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 && !ignore {
		slices.Sort(unknown)
		return podArgs{}, argError(short(strings.Join(unknown, ", ")), "known arguments only, or IgnoreUnknown=1")
	}
	return p, nil
}

func argError(value, want string) *Error {
	return Errorf(CodeInvalidEnvironment, "%v", &model.FieldError{Noun: "environment", Field: "CNI_ARGS", Value: value, Want: want})
}
