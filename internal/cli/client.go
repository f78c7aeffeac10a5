package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ask gets one answer from the agent of this node by its control socket.
func ask(ctx context.Context, runDir, path string, into any) error {
	return request(ctx, runDir, http.MethodGet, path, nil, into)
}

// tell is ask with something to look at.
func tell(ctx context.Context, runDir, path string, what, into any) error {
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return request(ctx, runDir, http.MethodPost, path, bytes.NewReader(b), into)
}

func request(ctx context.Context, runDir, method, path string, body io.Reader, into any) error {
	answer, err := answerOf(ctx, runDir, method, path, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, into)
}

// answerOf is the agent's answer as it came.
func answerOf(ctx context.Context, runDir, method, path string, body io.Reader) ([]byte, error) {
	socket := filepath.Join(runDir, "agent.sock")
	client := &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no agent runs on this node (%s): start it with `heddle agent`, or `systemctl start heddle-agent`", socket)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: permission denied: want root", socket)
	case err != nil:
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("agent: %s", strings.TrimSpace(string(answer)))
	}
	return answer, nil
}
