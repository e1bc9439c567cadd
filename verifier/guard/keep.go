package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"portcullis/internal/atomicfile"
	"portcullis/internal/event"
	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// The Pi's engine begins each boot with an empty disk (package enginedisk). What was
// loaded is kept as it came, one archive for each name of an approval, and goes through
// the whole of a load again: read, every digest held against its bytes, permitted anew.

// keptForm is the name of a kept archive: the approval's name, the configuration's digest.
// No name of an approval has an @ in it.
const keptForm = "%s@%s.tar"

// keptName takes the file name of a kept archive apart; ok is false for another file.
func keptName(file string) (name, config string, ok bool) {
	base, tar := strings.CutSuffix(file, ".tar")
	name, hex, at := strings.Cut(base, "@")
	return name, "sha256:" + hex, tar && at && !strings.HasPrefix(file, ".")
}

// openKept makes the directory, without what a killed process left half done.
func openKept(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("guard: kept images: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("guard: kept images: %w", err)
	}
	for _, e := range entries {
		if _, _, ok := keptName(e.Name()); ok {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("guard: kept images: %w", err)
		}
	}
	return nil
}

// keep keeps an image that is about to be loaded, and no other of the same name: an
// older version is not loaded any more.
func (g *Guard) keep(a *image.Archive, name string, i approval.Image) error {
	file := fmt.Sprintf(keptForm, name, strings.TrimPrefix(i.Config, "sha256:"))
	if err := g.keepOnly(a, filepath.Join(g.opt.Kept, file)); err != nil {
		return fmt.Errorf("guard: kept images: %w", err)
	}
	entries, err := os.ReadDir(g.opt.Kept)
	if err != nil {
		return fmt.Errorf("guard: kept images: %w", err)
	}
	for _, e := range entries {
		if of, _, ok := keptName(e.Name()); ok && of == name && e.Name() != file {
			// Two loads of one name at once may both come here.
			if err := os.Remove(filepath.Join(g.opt.Kept, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("guard: kept images: %w", err)
			}
		}
	}
	return nil
}

// maxSpare is how much a kept archive may have beside its image: what builders say of it, and the padding of names.
const maxSpare = 4 << 20

// keepOnly keeps an archive as it came. What else lies in it, by which a caller could take the disk for good, is not
// kept: the image alone is written then.
func (g *Guard) keepOnly(a *image.Archive, path string) error {
	spare, err := a.Spare()
	if err != nil {
		return err
	}
	if spare <= maxSpare {
		return a.Keep(path)
	}
	return atomicfile.Write(path, false, func(w io.Writer) error {
		from := a.Tar()
		_, err := io.Copy(&roomy{to: w, free: func() (int64, error) { return freeOn(g.opt.Kept) }}, from)
		return errors.Join(err, from.Close())
	})
}

// verifierItself is the caller of what nobody asked for from outside.
const verifierItself = "verifierd"

// fill loads what is kept into an engine that does not have it, beside Run: a
// revocation does not wait for it. One that is under way goes on.
func (g *Guard) fill(ctx context.Context) {
	if g.opt.Kept == "" || g.fit() != nil || !g.filling.TryLock() {
		return
	}
	g.work.Go(func() {
		defer g.filling.Unlock()
		entries, err := os.ReadDir(g.opt.Kept)
		if err != nil {
			g.opt.Events.Emit("refill.failed", event.Fields{"reason": ReasonImageStore, "detail": err.Error()})
			return
		}
		loaded, failed := 0, 0
		for _, e := range entries {
			_, config, ok := keptName(e.Name())
			if !ok || ctx.Err() != nil || g.has(ctx, config) {
				continue
			}
			if err := g.loadAgain(ctx, e.Name()); err != nil {
				failed++
				continue
			}
			loaded++
		}
		if loaded+failed > 0 {
			g.opt.Events.Emit("engine.filled", event.Fields{"images": loaded, "failed": failed})
		}
	})
}

// has tells whether the engine holds an image that the guard loaded.
func (g *Guard) has(ctx context.Context, config string) bool {
	known, ok := g.state.image(config)
	if !ok {
		return false
	}
	_, err := g.held(ctx, known.Image)
	return err == nil
}

// loadAgain loads a kept archive. One that was damaged, or revoked for good, is not
// kept any longer; one that is only not permitted now may be at the next boot.
func (g *Guard) loadAgain(ctx context.Context, file string) error {
	path := filepath.Join(g.opt.Kept, file)
	lists := newLists{state: g.state}
	defer lists.Close()
	a, err := image.Open(ctx, path, image.Options{Layer: lists.add})
	if err == nil {
		_, err = g.put(ctx, a, &lists, verifierItself, false)
		err = errors.Join(err, a.Close())
	}
	if err == nil {
		return nil
	}
	reason, detail := reasonOf(err)
	f := event.Fields{"file": file, "reason": reason, "detail": detail}
	if image.Reason(err) != "" || reason == approval.ReasonRevoked {
		f["removed"] = true
		if rerr := os.Remove(path); rerr != nil {
			f["removed"], f["failed"] = false, rerr.Error()
		}
	}
	g.opt.Events.Emit("refill.failed", f)
	return err
}
