package bypass

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/verifier/guard"
)

// DefaultRounds of a race; raceTime is the most that one may take.
const (
	DefaultRounds = 20
	raceTime      = 5 * time.Minute
)

// moveTag moves the name of an approved image to another one and back while a
// container is made by that name. Each that is made has to be of the approved image:
// what was looked at is what is made.
func (r *Rig) moveTag(ctx context.Context) error {
	good, err := dockerd.Make("x:1", r.probe, "raced")
	if err != nil {
		return err
	}
	if err := r.approve(ctx, good, nil); err != nil {
		return err
	}
	name, err := r.guard.Import(ctx, bytes.NewReader(good.Tar), "lab")
	if err != nil {
		return err
	}
	held, err := r.door.Image(ctx, name)
	if err != nil {
		return err
	}
	// Small, because the guard removes it in each round.
	evil, err := dockerd.Make("moved:1", []byte("#!/evil"), "moved")
	if err != nil {
		return err
	}
	race := race{rig: r, evil: evil, good: held.ID, name: name}
	err = race.run(ctx)
	r.note = fmt.Sprintf("%d rounds, in %d of them the name was moved: %d refused, %d failed in the engine, %d made, all of the approved image",
		race.made+race.refused+race.failed, race.moved, race.refused, race.failed, race.made)
	if err == nil && race.refused == 0 {
		err = errors.New("never refused for the image: " + r.note)
	}
	return err
}

// race is between one who moves a name and one who makes containers by it.
type race struct {
	rig        *Rig
	evil       dockerd.Image
	good, name string // the approved image's ID and name
	// Rounds, by their end; moved are those in which the name stood at the other image.
	made, refused, failed, moved int
}

func (r *race) run(ctx context.Context) error {
	rounds := r.rig.Rounds
	if rounds == 0 {
		rounds = DefaultRounds
	}
	end := time.Now().Add(raceTime)
	for (r.made+r.refused+r.failed < rounds || r.refused == 0) && ctx.Err() == nil && time.Now().Before(end) {
		id := r.evilID(ctx)
		moved := make(chan bool, 1)
		go func() {
			// The guard may have taken the image away by now: the name stays where it is.
			there := id != "" && r.rig.door.Tag(ctx, id, r.name) == nil
			r.rig.door.Tag(ctx, r.good, r.name)
			moved <- there
		}()
		time.Sleep(rand.N(4 * time.Millisecond))
		err := r.makeOne(ctx)
		if <-moved {
			r.moved++
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// evilID loads the other image where the engine does not have it. "" where the guard
// was quicker: then nothing moves in this round.
func (r *race) evilID(ctx context.Context) string {
	i, err := r.rig.door.Image(ctx, r.evil.Name)
	if err != nil && r.rig.door.Load(ctx, bytes.NewReader(r.evil.Tar)) == nil {
		i, err = r.rig.door.Image(ctx, r.evil.Name)
	}
	if err != nil {
		return ""
	}
	return i.ID
}

// makeOne makes a container by the name, and looks what it was made of.
func (r *race) makeOne(ctx context.Context) error {
	id, err := r.rig.make(`{"Image":"` + r.name + `"}`)
	switch {
	case err == nil:
	case strings.Contains(err.Error(), guard.ReasonImage):
		r.refused++
		return nil
	case strings.Contains(err.Error(), guard.ReasonEngine):
		r.failed++ // the engine gives up where an image changes under its hands
		return nil
	default:
		return err
	}
	r.made++
	of, err := r.rig.door.ImageOf(ctx, id)
	if err != nil {
		return err
	}
	if of != r.good {
		return fmt.Errorf("container %s is of %s, which nobody approved", id, of)
	}
	return r.rig.door.Remove(ctx, id)
}
