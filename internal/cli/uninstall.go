package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/kernel/filter"
	"github.com/heddle-net/heddle/internal/kernel/netlink"
	"github.com/heddle-net/heddle/internal/kernel/nft"
)

// uninstall is one removal.
type uninstall struct {
	file, pluginDir     string
	dryRun, force, hold bool

	config config.Config
	out    io.Writer
}

func uninstallCmd() *cobra.Command {
	var u uninstall
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove from this node what the agent made there: devices, routes, rules, tables, files",
		Long: "Remove from this node what the agent made there and what carries its marks: devices, routes, rules, nftables\n" +
			"tables, accepts in FORWARD chains, the conflist, the CNI plugin, sockets and state. Programs, /etc/heddle and\n" +
			"kernel settings such as net.ipv4.ip_forward stay. It refuses while an agent runs or workloads are attached.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u.out = cmd.OutOrStdout()
			if err := u.run(cmd); err != nil {
				return fmt.Errorf("uninstall: %w", err)
			}
			if u.hold {
				<-cmd.Context().Done()
			}
			return nil
		},
	}
	s := cmd.Flags()
	s.StringVar(&u.file, "config", defaultConfigFile, "the agent's configuration file, which says where its files are; it may be absent")
	d := config.Default()
	for flag, field := range dirFlags(&d) {
		s.String(flag, *field, "as of the agent")
	}
	s.StringVar(&u.pluginDir, "plugin-dir", defaultPluginDir, "directory of the CNI plugin")
	s.BoolVar(&u.dryRun, "dry-run", false, "only say what would be removed")
	s.BoolVar(&u.force, "force", false, "also while workloads are attached: they lose their network")
	s.BoolVar(&u.hold, "hold", false, "when done, stay until told to stop, as a container of a DaemonSet does")
	return cmd
}

// dirFlags are the flags that override a field of the configuration.
func dirFlags(c *config.Config) map[string]*string {
	return map[string]*string{"state-dir": &c.StateDir, "run-dir": &c.RunDir, "cni-conf-dir": &c.CNIConfDir, "subnet-file": &c.SubnetFile}
}

func (u *uninstall) run(cmd *cobra.Command) error {
	if err := u.configure(cmd); err != nil {
		return err
	}
	if err := needNetAdmin(); err != nil {
		return err
	}
	unlock, err := lockAgents()
	if err != nil {
		return err
	}
	defer unlock()
	found, err := inKernel()
	if err != nil {
		return err
	}
	if len(found.workloads) > 0 && !u.force {
		if !u.dryRun {
			return fmt.Errorf("%s: delete or move them first, or say --force, which cuts them off", attachedText(found.workloads))
		}
		u.say("# %s: without --force nothing would be removed", attachedText(found.workloads))
	}
	files, err := u.files()
	if err != nil {
		return err
	}
	if u.dryRun {
		for _, what := range slices.Concat(found.objects, files) {
			if info, err := os.Lstat(what); err == nil && info.IsDir() {
				what += ", if nothing else is in it"
			}
			u.say("would remove %s", what)
		}
		return nil
	}
	return u.remove(cmd.Context(), found, files)
}

// remove begins with the conflist, so that the runtime adds no pods, and ends with the state.
func (u *uninstall) remove(ctx context.Context, found leftovers, files []string) error {
	var errs []error
	errs = append(errs, u.removeFiles([]string{filepath.Join(u.config.CNIConfDir, cni.ConflistFile)}))
	if len(found.objects) > 0 {
		if err := sweep(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
		left, err := inKernel()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, what := range found.objects {
			if !slices.Contains(left.objects, what) {
				u.say("removed %s", what)
			}
		}
		if len(left.objects) > 0 {
			errs = append(errs, fmt.Errorf("the kernel still has %s", strings.Join(left.objects, ", ")))
		}
	}
	errs = append(errs, u.removeFiles(files))
	return errors.Join(errs...)
}

// configure is file, then flags.
func (u *uninstall) configure(cmd *cobra.Command) error {
	text, err := os.ReadFile(u.file)
	switch {
	case err == nil:
		u.config, err = config.Parse(text)
	case errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config"):
		u.config, err = config.Default(), nil
	default:
		err = fmt.Errorf("--config: %w", err)
	}
	if err != nil {
		return err
	}
	for flag, field := range dirFlags(&u.config) {
		if f := cmd.Flags().Lookup(flag); f.Changed {
			*field = f.Value.String()
		}
	}
	return nil
}

// lockAgents makes sure that no agent works on this network namespace, and that none starts to until unlock.
func lockAgents() (unlock func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: agent.LockName, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, errors.New("an agent runs on this node: stop it first (systemctl stop heddle-agent; in Kubernetes, delete its DaemonSet)")
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Close() }, nil
}

// sweep has every driver remove what is its own.
func sweep(ctx context.Context) error {
	log := slog.New(slog.DiscardHandler)
	links, err := netlink.New(netlink.Options{NS: netlink.CurrentNS, Log: log})
	if err != nil {
		return err
	}
	defer links.Close()
	rules, err := nft.New(nft.Options{NS: -1, Log: log})
	if err != nil {
		return err
	}
	policies, err := filter.New(filter.Options{NS: -1, Log: log})
	if err != nil {
		return err
	}
	defer func() { _ = policies.Close() }()
	return errors.Join(links.Sweep(ctx), policies.Sweep(ctx), rules.Sweep(ctx))
}

func attachedText(workloads []string) string {
	const shown = 3
	text := strings.Join(workloads[:min(shown, len(workloads))], ", ")
	if more := len(workloads) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return "workloads are attached (" + text + ")"
}

func (u *uninstall) say(format string, args ...any) {
	_, _ = fmt.Fprintf(u.out, format+"\n", args...)
}
