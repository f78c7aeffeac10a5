// Command heddle-cni is Heddle's CNI plugin. It does nothing but ask the agent: environment, standard
// input and the open network namespace go over a root-only Unix socket, standard output and exit code
// come back. It holds no credentials and decides nothing. Standard output has what the CNI
// specification asks for and never anything else.
package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/cni/wire"
)

// conf is all that the plugin reads of its configuration; the agent reads the rest.
type conf struct {
	CNIVersion string `json:"cniVersion"`
	Socket     string `json:"socket"`
}

func main() { os.Exit(run(os.Getenv, os.Stdin, os.Stdout)) }

func run(getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	r := wire.Request{
		Command:     getenv("CNI_COMMAND"),
		ContainerID: getenv("CNI_CONTAINERID"),
		Netns:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Path:        getenv("CNI_PATH"),
	}
	var c conf
	fail := func(code int, msg string) int {
		_, _ = stdout.Write(errorObject(version(c.CNIVersion), code, msg))
		return 1
	}
	if r.Command == "" {
		return fail(wire.CodeInvalidEnvironment, "environment: CNI_COMMAND (empty): want ADD, DEL, CHECK, GC, STATUS or VERSION: heddle-cni is run by a container runtime")
	}
	var err error
	if r.Stdin, err = io.ReadAll(io.LimitReader(stdin, wire.MaxStdin+1)); err != nil {
		return fail(wire.CodeIO, "standard input: "+err.Error())
	}
	confErr := json.Unmarshal(r.Stdin, &c) // the agent says what is wrong with it, in more words
	if r.Command == "VERSION" {
		_, _ = io.WriteString(stdout, `{"cniVersion":"`+version(c.CNIVersion)+`","supportedVersions":["`+strings.Join(wire.Versions(), `","`)+`"]}`+"\n")
		return 0
	}
	if name := r.Oversize(); name != "" {
		return fail(wire.CodeInvalidEnvironment, name+": larger than heddle takes")
	}
	if confErr != nil {
		c = conf{}
	}
	socket := getenv("HEDDLE_CNI_SOCKET")
	if socket == "" {
		socket = c.Socket
	}
	if socket == "" {
		socket = wire.DefaultSocket
	}
	netns := -1
	if r.Netns != "" && (r.Command == "ADD" || r.Command == "CHECK") {
		f, err := openNetns(r.Netns)
		if err != nil {
			r.NetnsError = err.Error()
		} else {
			netns = f
		}
	}
	answer, err := ask(socket, &r, netns, time.Now().Add(requestTimeout))
	if r.Command == "STATUS" && unavailable(answer, err) && wasReady(socket, time.Now()) {
		return 0
	}
	if err != nil {
		code := wire.CodeTryAgainLater
		if r.Command == "STATUS" {
			code = wire.CodeNotAvailable
		}
		return fail(code, "heddle's agent did not answer on "+socket+": "+err.Error()+"; try: systemctl status heddle-agent")
	}
	if _, err := stdout.Write(answer.Stdout); err != nil {
		return 1
	}
	return int(answer.Exit)
}

// unavailable reports whether there is no agent, or one that cannot add pods yet.
func unavailable(answer wire.Response, err error) bool {
	var e struct {
		Code int `json:"code"`
	}
	return err != nil || answer.Exit != 0 && json.Unmarshal(answer.Stdout, &e) == nil && e.Code == wire.CodeNotAvailable
}

// wasReady reports whether pods could be added not long ago (wire.ReadyFile). A time that is yet to come is no time.
func wasReady(socket string, now time.Time) bool {
	f, err := os.Stat(filepath.Join(filepath.Dir(socket), wire.ReadyFile))
	if err != nil {
		return false
	}
	age := now.Sub(f.ModTime())
	return age >= 0 && age < wire.ReadyFor
}

// version is the runtime's, when Heddle speaks it, else the newest that Heddle speaks.
func version(asked string) string {
	all := wire.Versions()
	for _, v := range all {
		if v == asked {
			return v
		}
	}
	return all[len(all)-1]
}

// errorObject is the specification's error object, laid out as the agent does.
func errorObject(version string, code int, msg string) []byte {
	out, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		Code       int    `json:"code"`
		Msg        string `json:"msg"`
	}{version, code, msg}, "", "    ")
	if err != nil { // strings and a number always encode
		panic(err)
	}
	return append(out, '\n')
}
