package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// netConfLoop files the pools of the configured net-conf.json, at start and whenever the file changes.
// It looks once a second: a ConfigMap's mount changes by a rename of directories above, which a watch
// of the file would not see.
func (a *Agent) netConfLoop(ctx context.Context) error {
	if a.Config.NetConf == "" {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var done []byte
	for {
		text, err := os.ReadFile(a.Config.NetConf)
		if err == nil && !bytes.Equal(text, done) {
			err = a.fileNetConf(ctx, text)
		}
		if err == nil {
			done = text
		}
		a.netConfResult(err)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *Agent) netConfResult(err error) {
	// A store that is away is a problem of its own, and none of the file's; it is tried again.
	if err == nil || errors.Is(err, store.ErrUnavailable) {
		a.update(func(s *state) { s.netConf = nil })
		return
	}
	p := model.Problem{
		Code: "net-conf", Severity: model.Failure, Subject: a.Config.NetConf,
		Detail: strings.TrimPrefix(err.Error(), "net-conf.json: ") + "; nothing was changed", // the subject names the file
		Next:   "mend the file; it is read again within a second",
	}
	if old := a.snapshot().netConf; len(old) == 0 || old[0] != p {
		a.Log.Error("net-conf refused", "error", err)
	}
	a.update(func(s *state) { s.netConf = []model.Problem{p} })
}

func (a *Agent) fileNetConf(ctx context.Context, text []byte) error {
	pools, err := flannel.ParseNetConf(text)
	if err != nil {
		return err
	}
	for i := range pools {
		pools[i].Masquerade = a.Config.Masquerade != nil && *a.Config.Masquerade
	}
	return FilePools(ctx, a.Store, pools)
}

// FilePools makes the store's pools of Flannel's words equal to pools: "flannel" and "flannel6". Other
// pools stay, and all must go together. Nodes that are given the same file at once write the same.
func FilePools(ctx context.Context, s store.Store, pools []model.Pool) error {
	const attempts = 5
	var err error
	for range attempts {
		if err = filePools(ctx, s, pools); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return err
}

func filePools(ctx context.Context, s store.Store, pools []model.Pool) error {
	items, _, err := s.List(ctx, model.KindPool)
	if err != nil {
		return err
	}
	have := map[string]store.Item{}
	var all []model.Pool // the new ones last: of two that overlap, the error is about the later
	for _, i := range items {
		p, ok := i.Object.(*model.Pool)
		if !ok {
			continue
		}
		have[p.Name] = i
		if p.Name != flannel.PoolName && p.Name != flannel.PoolName6 {
			all = append(all, *p)
		}
	}
	if err := model.ValidatePools(append(all, pools...)); err != nil {
		return err
	}
	for i := range pools {
		p := &pools[i]
		old, ok := have[p.Name]
		delete(have, p.Name)
		if ok && reflect.DeepEqual(old.Object, p) {
			continue
		}
		if _, err := s.Put(ctx, p, old.Revision); err != nil {
			return err
		}
	}
	for _, name := range []string{flannel.PoolName, flannel.PoolName6} {
		if old, ok := have[name]; ok {
			err := s.Delete(ctx, model.KindPool, name, old.Revision)
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}
