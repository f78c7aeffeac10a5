// Command heddle is the whole product in one binary: agent, store, lab and the questions people ask.
package main

import (
	"os"

	"github.com/heddle-net/heddle/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
