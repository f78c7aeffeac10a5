package cli

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/store/embedded"
)

func storeCmd() *cobra.Command {
	o := embedded.Options{}
	var logLevel, cluster string
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Run the store: an etcd in this binary, so that nobody installs a database",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Cluster, err = embedded.ParseCluster(cluster); err != nil {
				return err
			}
			// Many small values are written and few read again: collecting early costs little here.
			debug.SetGCPercent(50)
			if o.Logger, err = newLogger(logLevel); err != nil {
				return err
			}
			return embedded.Run(cmd.Context(), o)
		},
	}
	s := cmd.Flags()
	s.StringVar(&o.Name, "name", "store", "name of this member")
	s.StringVar(&o.DataDir, "data-dir", "/var/lib/heddle/store", "directory of the data")
	s.StringSliceVar(&o.Listen, "listen", []string{"http://127.0.0.1:2379"}, "URLs for agents; https, with certificates, unless on loopback")
	s.StringSliceVar(&o.Advertise, "advertise", nil, "URLs by which agents reach this member (default: those of --listen)")
	s.StringVar(&o.PeerListen, "peer-listen", "", "URL for the other members (three members only)")
	s.StringVar(&cluster, "initial-cluster", "", "all members as name=peer-URL,… (three members only)")
	s.StringVar(&o.TLS.CA, "ca", "", "certificate authority of agents and members")
	s.StringVar(&o.TLS.Cert, "cert", "", "certificate of this member")
	s.StringVar(&o.TLS.Key, "key", "", "key of that certificate")
	s.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func certCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: "cert", Short: "Make the certificates of store and agents"}
	cmd.PersistentFlags().StringVar(&dir, "dir", "/etc/heddle/certs", "directory of the certificates")
	var overwrite bool
	cmd.PersistentFlags().BoolVar(&overwrite, "overwrite", false, "replace files that are there")
	cmd.AddCommand(&cobra.Command{
		Use:   "ca",
		Short: "Make the certificate authority",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cert.MakeCA(dir, cert.Options{Overwrite: overwrite}); err != nil {
				return certHint(err)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "made %s/ca.crt and %s/ca.key: keep the key on one machine\n", dir, dir)
			return err
		},
	})
	for _, k := range []struct {
		kind  cert.Kind
		short string
	}{
		{cert.Server, "Make the certificate of a store of one member"},
		{cert.Peer, "Make the certificate of a member of a store of three"},
		{cert.Client, "Make an agent's certificate"},
	} {
		var hosts []string
		sub := &cobra.Command{
			Use:   string(k.kind) + " NAME",
			Short: k.short,
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				r := cert.Request{Name: args[0], Kind: k.kind, Hosts: hosts}
				if err := cert.Issue(dir, r, cert.Options{Overwrite: overwrite}); err != nil {
					return certHint(err)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "made %s/%s.crt and %s/%s.key\n", dir, args[0], dir, args[0])
				return err
			},
		}
		if k.kind != cert.Client {
			sub.Flags().StringSliceVar(&hosts, "host", nil, "addresses and names of this member")
		}
		cmd.AddCommand(sub)
	}
	return cmd
}
