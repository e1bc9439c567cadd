package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"sync"

	"portcullis/attestserver/policy"
)

// MaxPCs bounds a fleet.
const MaxPCs = 4096

// ValidName tells whether a PC may be called so: the name is part of file names.
func ValidName(name string) bool { return name != "" && named.MatchString(name) }

var named = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

// Fleet is one attestd for several PCs. Each has a port (usually a VLAN of the one
// interface) with an address, a pxed and a gatewayd of its own, and here a Server
// of its own: one turn at a time owns its verdict, and its references, epochs, actions,
// limits and questions are nobody else's. What they share is the signed image with
// what it expects, the policy, the gateway's key, and the verdict log, where who
// waits for the disk at the same time waits for one fsync.
type Fleet struct {
	record *Record
	pcs    []*Server // sorted by name
}

// NewFleet takes Servers that share a Record. With more than one, each has a name.
func NewFleet(pcs []*Server) (*Fleet, error) {
	if len(pcs) == 0 || len(pcs) > MaxPCs {
		return nil, fmt.Errorf("attestd: %d PCs, 1 to %d are possible", len(pcs), MaxPCs)
	}
	f := &Fleet{record: pcs[0].o.Record, pcs: slices.Clone(pcs)}
	slices.SortFunc(f.pcs, func(a, b *Server) int { return cmp.Compare(a.o.Name, b.o.Name) })
	for i, s := range f.pcs {
		s.line = f.pcs[0].line
		if s.o.Key.Equal(f.pcs[0].o.Key) {
			s.gateway = f.pcs[0].gateway // with a certificate for all
		}
		switch name := s.o.Name; {
		case s.o.Record != f.record:
			return nil, errors.New("attestd: PCs with verdict logs of their own")
		case !ValidName(name) && (name != "" || len(pcs) > 1):
			return nil, fmt.Errorf("attestd: a PC of the name %.60q", name)
		case i > 0 && f.pcs[i-1].o.Name == name:
			return nil, fmt.Errorf("attestd: two PCs of the name %s", name)
		}
	}
	return f, nil
}

// Run serves all PCs until ctx ends, or the verdicts, epochs or actions of one of
// them cannot be kept: then all end, and begin anew at unknown. listen opens the
// port of a PC. It may wait for it as long as it likes; the others do not.
func (f *Fleet) Run(ctx context.Context, listen func(ctx context.Context, pc string) (net.Listener, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() { f.pcs[0].publish(ctx) })
	errs := make([]error, len(f.pcs))
	for i, s := range f.pcs {
		group.Go(func() {
			defer cancel()
			err := s.run(ctx, func(ctx context.Context) (net.Listener, error) { return listen(ctx, s.o.Name) })
			if err != nil && s.o.Name != "" {
				err = fmt.Errorf("PC %s: %w", s.o.Name, err)
			}
			errs[i] = err
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// SetPolicy puts another policy in force for all PCs. It returns at once.
func (f *Fleet) SetPolicy(p *policy.Policy) {
	for _, s := range f.pcs {
		go s.SetPolicy(p)
	}
}

// Reasons why a request about a PC is refused.
const (
	ReasonPCUnnamed = "pc-unnamed" // attestd serves several, and the request names none
	ReasonPCUnknown = "pc-unknown" // no PC of that name
)

// pick finds the PC that a request names.
func (f *Fleet) pick(name string) (*status, error) {
	if name == "" && len(f.pcs) == 1 {
		return &f.pcs[0].status, nil
	}
	if name == "" {
		return nil, &AskError{ReasonPCUnnamed, "several PCs are served: name one of them"}
	}
	i, found := slices.BinarySearchFunc(f.pcs, name, func(s *Server, name string) int { return cmp.Compare(s.o.Name, name) })
	if !found {
		return nil, &AskError{ReasonPCUnknown, fmt.Sprintf("no PC of the name %.60q", name)}
	}
	return &f.pcs[i].status, nil
}
