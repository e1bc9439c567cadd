package sessiontest

import (
	"path/filepath"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/pxe/artefact"
	"portcullis/pxe/artefact/artefacttest"
	"portcullis/pxe/session"
)

// ID is the id of the session that New makes.
const ID = "abcdefghijklmnopqrstuvwxyz"

// New makes a small image, loads it and opens a session for the firmware.
func New(t testing.TB, f session.Firmware) (*Sessions, *artefacttest.Image) {
	t.Helper()
	i := artefacttest.New(t, nil)
	floor, err := manifest.OpenFloor(filepath.Join(t.TempDir(), "floor"))
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := artefact.NewStore(i.Dir, artefact.Policy{Trust: i.Trust()}, floor, time.Now).Current()
	if err != nil {
		t.Fatal(err)
	}
	return &Sessions{
		Live:  session.Session{ID: ID, Firmware: f, State: session.Offered, Manifest: img.Manifest.Digest},
		Image: img,
	}, i
}
