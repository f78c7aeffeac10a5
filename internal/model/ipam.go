package model

import "fmt"

// IPAM says how nodes take blocks of all pools (Calico's IPAMConfiguration).
type IPAM struct {
	// StrictAffinity keeps a node from lending addresses of other nodes' blocks when it can claim none itself.
	StrictAffinity bool `json:"strictAffinity,omitempty"`
	// MaxBlocksPerHost bounds the blocks that one node claims, per family; 0: no bound.
	MaxBlocksPerHost int `json:"maxBlocksPerHost,omitempty"`
	// AutoAllocate lets a node claim another block when its own are full.
	AutoAllocate bool `json:"autoAllocate"`
	// CooldownSeconds is how long a released address is not given out again; nil: the allocator's own choice.
	CooldownSeconds *int `json:"cooldownSeconds,omitempty"`
}

// DefaultIPAM is what counts where nobody wrote anything: Calico's defaults.
func DefaultIPAM() IPAM { return IPAM{AutoAllocate: true} }

// Validate checks the bounds of the settings.
func (i *IPAM) Validate() error {
	const noun = "ipam settings"
	if i.MaxBlocksPerHost < 0 {
		return &FieldError{noun, "maxBlocksPerHost", fmt.Sprint(i.MaxBlocksPerHost), "a number from 0, which is no bound"}
	}
	if c := i.CooldownSeconds; c != nil && *c < 0 {
		return &FieldError{noun, "cooldownSeconds", fmt.Sprint(*c), "a number of seconds from 0"}
	}
	return nil
}
