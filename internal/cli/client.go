package cli

import (
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
	socket := filepath.Join(runDir, "agent.sock")
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no agent runs on this node (%s): start it with `heddle agent`, or `systemctl start heddle-agent`", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: permission denied: want root", socket)
	case err != nil:
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("agent: %s", strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, into)
}
