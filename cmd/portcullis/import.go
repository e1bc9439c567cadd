package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"portcullis/images/fat"
	"portcullis/images/importer"
	"portcullis/images/manifest"
	"portcullis/images/update"
	"portcullis/internal/cli"
	"portcullis/internal/config"
)

func init() { commands = append(commands, importCommand()) }

func importCommand() *cli.Command {
	c := &cli.Command{
		Name: "import", Args: "[DEVICE]",
		Summary: "Take the PC's image (hpc/) and an update (*.pcupdate) from a FAT stick labelled PCIMPORT.\n" +
			"Both are verified with the keys of this Pi; an update restarts it. Plugging the stick in does the same.",
		Example: "portcullis import /dev/sda1\nportcullis import --json",
	}
	c.Run = func(ctx context.Context, stdio *cli.IO, args []string) error {
		flags := cli.NewFlags(c, stdio)
		asJSON := flags.Bool("json", false, "one JSON object")
		noReboot := flags.Bool("no-reboot", false, "leave the restart after an update to the operator")
		file := flags.String("config", config.DefaultPath, "configuration file: whose images are taken and where they go")
		words, err := cli.Parse(c, stdio, flags, args)
		if err != nil {
			return err
		}
		if len(words) > 1 {
			return cli.Usagef("import takes one DEVICE at most")
		}
		cfg, err := config.Load(*file)
		if err != nil {
			return err
		}
		stick, err := openStick(words)
		if err != nil {
			return err
		}
		defer stick.Close()
		meter := update.NewMeter(stdio.Err, stdio.Colour, time.Now)
		r, err := importAll(ctx, stick.FS, cfg, meter.Show)
		meter.End()
		r.Device = stick.Path
		if err != nil {
			r.Reason, r.Detail = importer.ReasonOf(err), err.Error()
		}
		if *asJSON {
			err = errors.Join(err, json.NewEncoder(stdio.Out).Encode(r))
		} else {
			printImport(stdio.Out, r)
		}
		if r.Update != nil && r.Update.Changed && !*noReboot {
			err = errors.Join(err, restart(ctx))
		}
		return err
	}
	return c
}

func openStick(words []string) (*importer.Volume, error) {
	if len(words) == 1 {
		return importer.OpenVolume(words[0])
	}
	return importer.FindVolume()
}

// importReport is the --json shape; a part that is not on the stick is null.
type importReport struct {
	Device string                 `json:"device"`
	Image  *importer.ImageResult  `json:"image"`
	Update *importer.UpdateResult `json:"update"`
	Reason string                 `json:"reason,omitempty"`
	Detail string                 `json:"detail,omitempty"`
}

// importAll takes what is there; one part that is refused does not keep the other away.
func importAll(ctx context.Context, stick *fat.FS, cfg *config.Config, progress update.Progress) (importReport, error) {
	var r importReport
	image, imageErr := importImage(ctx, stick, cfg, progress)
	var missing *fat.Error
	if errors.As(imageErr, &missing) && missing.Reason == fat.ReasonNotFound && image.Image == "" {
		imageErr = nil // no image on this stick
	} else {
		r.Image = &image
	}
	u, updateErr := importUpdate(ctx, stick, cfg, progress)
	if u.File != "" || updateErr != nil {
		r.Update = &u
	}
	if r.Image == nil && r.Update == nil {
		return r, &importer.Error{Reason: importer.ReasonEmpty, Err: errors.New("neither hpc/manifest.dsse nor a file *.pcupdate")}
	}
	return r, errors.Join(imageErr, updateErr)
}

func importImage(ctx context.Context, stick *fat.FS, cfg *config.Config, progress update.Progress) (importer.ImageResult, error) {
	o := importer.ImageOptions{Dir: cfg.PXE.ImageDir, Floor: cfg.PXE.MinVersion, AllowLab: cfg.PXE.AllowLabImage, Progress: progress}
	o.Trust.Threshold = cfg.PXE.Threshold
	for _, k := range cfg.PXE.ReleaseKeys {
		b, err := base64.StdEncoding.DecodeString(k)
		if err != nil {
			return importer.ImageResult{}, fmt.Errorf("pxe.release_keys: %w", err)
		}
		o.Trust.ReleaseKeys = append(o.Trust.ReleaseKeys, ed25519.PublicKey(b))
	}
	// What pxed has accepted once is the lowest that comes in.
	floor, err := manifest.OpenFloor(filepath.Join(cfg.StateDir, "pxed", "image-floor"))
	if err != nil {
		return importer.ImageResult{}, err
	}
	o.Floor = max(o.Floor, floor.Value())
	return importer.Image(ctx, stick, o)
}

func importUpdate(ctx context.Context, stick *fat.FS, cfg *config.Config, progress update.Progress) (importer.UpdateResult, error) {
	pi, err := onThisPi()
	if errors.Is(err, fs.ErrNotExist) {
		return importer.UpdateResult{}, nil // not a Pi from a card: only images are taken
	}
	if err != nil {
		return importer.UpdateResult{}, err
	}
	pi.Progress = progress
	return importer.Update(ctx, stick, importer.UpdateOptions{
		Trust: update.TrustOf(pi.Running), Sequence: pi.Running.Sequence, Tried: filepath.Join(cfg.StateDir, "update-tried"),
		Apply: func(ctx context.Context, r io.Reader) error {
			unlock, err := update.Lock(updateLock)
			if err != nil {
				return err
			}
			defer unlock()
			_, err = update.Apply(ctx, r, pi)
			return err
		},
	})
}

func printImport(w io.Writer, r importReport) {
	if i := r.Image; i != nil && i.Image != "" {
		switch {
		case i.Changed:
			fmt.Fprintf(w, "portcullis: import image=%s version=%d bytes=%d\n", i.Image, i.Version, i.Bytes)
		case r.Reason == "":
			fmt.Fprintf(w, "portcullis: import image=%s version=%d unchanged=yes\n", i.Image, i.Version)
		}
	}
	if u := r.Update; u != nil && u.File != "" {
		switch {
		case u.Changed:
			fmt.Fprintf(w, "portcullis: import update=%s release=%d restart=yes\n", u.File, u.Sequence)
		case r.Reason == "":
			fmt.Fprintf(w, "portcullis: import update=%s release=%d unchanged=yes\n", u.File, u.Sequence)
		}
	}
	if r.Reason != "" {
		fmt.Fprintf(w, "portcullis: import failed reason=%s detail=%q\n", r.Reason, r.Detail)
	}
}
