package guard

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/engine"
	"portcullis/verifier/image"
	"portcullis/verifier/record"
)

// Own is a container that the verifier runs for itself: a service of the Pi. What it
// may have is declared in the verifier's own program, and has to be approved all the
// same: of the two the container gets what is declared, if what is approved covers it.
type Own struct {
	Name    string // of the container
	Purpose string // that its image has to be approved for
	Profile approval.Profile
	Slice   string // of systemd; "" = none: see engine.Spec
	Journal string // identifier in systemd's journal; "" = a file of the engine
}

// Owned is a container of StartOwn that is there.
type Owned struct {
	ID string
	Own
}

// Owned lists what StartOwn made, also in a former life of the verifier.
func (g *Guard) Owned() (out []Owned) {
	for id, made := range g.state.containers() {
		if made.Own {
			out = append(out, Owned{id, Own{made.Spec.Name, made.Purpose, made.Spec.Profile, made.Spec.Slice, made.Spec.Journal}})
		}
	}
	slices.SortFunc(out, func(a, b Owned) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// StartOwn makes a container of the newest image that is approved for the purpose and
// was loaded, and starts it, in the way of every other: made, read back, its layers
// compared, permitted in the log, started. A container of the same name that the
// guard made goes first. The error has a typed reason where it is a refusal.
func (g *Guard) StartOwn(ctx context.Context, o Own) (string, error) {
	if err := g.fit(); err != nil {
		return "", err
	}
	if err := g.holds(o.Slice); err != nil {
		return "", err
	}
	i, of, err := g.newest(ctx, o.Purpose)
	if err != nil {
		return "", err
	}
	if err := of.Approval.Profile.Covers(&o.Profile); err != nil {
		return "", err
	}
	for _, old := range g.Owned() {
		if old.Name == o.Name {
			if err := g.remove(ctx, old.ID); err != nil {
				return "", err
			}
		}
	}
	made := madeByGuard{Image: of.Approval.Image, Purpose: o.Purpose, Created: g.opt.Clock.Now(), Own: true,
		Spec: engine.Spec{Name: o.Name, Image: i, Profile: o.Profile, Labels: map[string]string{PurposeLabel: o.Purpose}, Slice: o.Slice, Journal: o.Journal,
			Runtime: g.runtime()}}
	id, err := g.make(ctx, made)
	if err != nil {
		return "", err
	}
	g.opt.Events.Emit("container.created", event.Fields{"container": id, "image": made.Image.Config, "purpose": made.Purpose, "caller": verifierItself})
	// Also where ctx has ended meanwhile: what was made is started or removed.
	g.step.Lock()
	defer g.step.Unlock()
	if err := g.run(ctx, id, verifierItself, made); err != nil {
		return "", errors.Join(err, g.remove(context.WithoutCancel(ctx), id))
	}
	return id, nil
}

// holds is nil where a slice means something: systemd applies what the slice says to the
// groups that it makes itself, and to no others.
func (g *Guard) holds(slice string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slice != "" && !g.info.Systemd {
		return refuse(ReasonSlices, "the engine makes control groups itself: %s would not hold for them", slice)
	}
	return nil
}

// newest finds the image of the highest version that is approved for a purpose, as the
// engine has it. Without an image in the engine the approval stands beside the error.
func (g *Guard) newest(ctx context.Context, purpose string) (engine.Image, record.Listed, error) {
	var no error = &approval.Error{Reason: approval.ReasonUnapproved, Detail: "no approval is for " + purpose}
	var best record.Listed
	for _, l := range g.opt.Approvals.Approvals() {
		switch {
		case l.Approval.Purpose != purpose:
		case l.Refused != nil:
			no = l.Refused
		case best.Approval == nil || l.Approval.Version > best.Approval.Version:
			best = l
		}
	}
	if best.Approval == nil {
		return engine.Image{}, best, no
	}
	for _, id := range []string{best.Approval.Image.Manifest, best.Approval.Image.Config} {
		if _, ok := g.state.image(id); !ok {
			continue
		}
		i, err := g.opt.Engine.Image(ctx, id)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return engine.Image{}, best, err
		}
		return i, best, sound(i, best.Approval.Image)
	}
	return engine.Image{}, best, refuse(ReasonImage, "%s is approved, and was not loaded", approval.Version(best.Approval))
}

// ImportOwn loads an archive that came with the Pi's system, where it is the image that is
// approved for a purpose and the engine lacks it.
func (g *Guard) ImportOwn(ctx context.Context, purpose, file string) error {
	_, of, missing := g.newest(ctx, purpose)
	if Reason(missing) != ReasonImage {
		return missing
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// A copy, as of every other: the file stays with its system, which an update replaces.
	lists := newLists{state: g.state}
	defer lists.Close()
	a, err := g.opt.Read(ctx, f, image.Options{Layer: lists.add})
	if err != nil {
		return err
	}
	defer a.Close()
	if i := a.Image(); !i.Equal(of.Approval.Image) {
		return missing
	}
	_, err = g.put(ctx, a, &lists, verifierItself, true)
	return err
}

// Standing asks how a container of StartOwn stands.
func (g *Guard) Standing(ctx context.Context, id string) (engine.Standing, error) {
	return g.opt.Engine.Standing(ctx, id)
}

// Ended returns when a container of StartOwn does not run any more, or is gone.
func (g *Guard) Ended(ctx context.Context, id string) error { return g.opt.Engine.Ended(ctx, id) }

// LastWords is the last line of a container's output.
func (g *Guard) LastWords(ctx context.Context, id string) string {
	line, err := g.opt.Engine.Last(ctx, id)
	if err != nil {
		return err.Error()
	}
	return printable(line, 400)
}

// EndOwn ends a container of StartOwn, with time for its last work, and removes it, until ctx ends.
func (g *Guard) EndOwn(ctx context.Context, id string, grace time.Duration) error {
	made, ok := g.state.container(id)
	if !ok || !made.Own {
		return refuse(ReasonContainer, "%s", id)
	}
	if err := g.opt.Engine.Stop(ctx, id, grace); err != nil && !errors.Is(err, engine.ErrNotFound) {
		return err
	}
	if err := g.step.within(ctx); err != nil {
		return err
	}
	defer g.step.Unlock()
	return g.remove(ctx, id)
}

// Refused writes down that StartOwn was refused; what Decide refused stands there already.
func (g *Guard) Refused(o Own, err error) error {
	var was *decidedError
	if errors.As(err, &was) {
		return nil
	}
	reason, detail := reasonOf(err)
	return g.Refuse(record.Refusal{Action: string(approval.Start), Reason: reason, Detail: o.Purpose + ": " + detail, Caller: verifierItself})
}

// Fit is nil when containers may be started.
func (g *Guard) Fit() error { return g.fit() }

// Reason is the typed reason in an error of this package.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	reason, _ := reasonOf(err)
	return reason
}
