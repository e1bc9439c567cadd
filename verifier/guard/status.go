package guard

import (
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

// Service answers the Verifier service of api/portcullis/v1.
type Service struct{ g *Guard }

var _ portcullisv1connect.VerifierHandler = (*Service)(nil)

// NewService answers for g.
func NewService(g *Guard) *Service { return &Service{g} }

// GetVerifierStatus tells what the guard believes of its engine and what it made there.
func (s *Service) GetVerifierStatus(context.Context, *connect.Request[v1.GetVerifierStatusRequest]) (*connect.Response[v1.GetVerifierStatusResponse], error) {
	g := s.g
	g.mu.Lock()
	out := &v1.GetVerifierStatusResponse{Fit: len(g.unfit) == 0, Unfit: maps.Clone(g.unfit), Engine: g.info.Version, Api: g.info.API,
		ContainerdStore: g.info.Containerd, Userns: g.info.Userns, Refused: maps.Clone(g.refused)}
	out.Layers = g.layers.String()
	if out.Layers == LayersHashed {
		out.LayersDetail = g.layers.why.Error()
	}
	if !g.tested.IsZero() {
		out.SelfTestMs = g.tested.UnixMilli()
	}
	g.mu.Unlock()
	configs := map[string]bool{}
	for _, i := range g.state.images() {
		configs[i.Image.Config] = true
	}
	out.Images = slices.Sorted(maps.Keys(configs))
	made := g.state.containers()
	for _, id := range slices.Sorted(maps.Keys(made)) {
		c := made[id]
		m := &v1.GuardedContainer{Id: id, Name: c.Spec.Name, Image: c.Image.Config, Purpose: c.Purpose, CreatedMs: c.Created.UnixMilli()}
		if c.Permitted {
			m.Approval, m.Entry = c.Permission.Approval, c.Permission.Index
		}
		out.Containers = append(out.Containers, m)
	}
	return connect.NewResponse(out), nil
}
