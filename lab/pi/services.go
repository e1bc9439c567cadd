package pi

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"portcullis/images/manifest"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
)

// approvalAge is how old approvals of the services become before they are signed anew:
// they are good for a year.
const approvalAge = 300 * 24 * time.Hour

// Approver is who approves images in this checkout's labs: its key, and the file of
// approvers that names it alone. It is made where there is none.
func (b *Builder) Approver(ctx context.Context) (key ed25519.PrivateKey, approvers string, err error) {
	unlock, err := b.lock(ctx, "approver")
	if err != nil {
		return nil, "", err
	}
	defer unlock()
	if _, err := os.Stat(b.approverKey()); errors.Is(err, fs.ErrNotExist) {
		if _, err := manifest.GenerateKey(b.approverKey()); err != nil {
			return nil, "", fmt.Errorf("pi: approver's key: %w", err)
		}
	}
	if key, err = manifest.LoadKey(b.approverKey()); err != nil {
		return nil, "", fmt.Errorf("pi: approver's key: %w", err)
	}
	file, err := approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}}.Encode()
	return key, string(file), err
}

func (b *Builder) approverKey() string { return b.dir("approver.key") }

// Services builds the Pi's services as container images, as an operator does: with the
// command portcullis, which program is. Beside them lie approvals of Approver. What
// has not changed stays, approvals included: an image of the Pi holds them.
func (b *Builder) Services(ctx context.Context, program string) (dir string, err error) {
	if _, _, err := b.Approver(ctx); err != nil {
		return "", err
	}
	unlock, err := b.lock(ctx, "services")
	if err != nil {
		return "", err
	}
	defer unlock()
	b.say("the Pi's services as images")
	out, err := os.MkdirTemp(b.dir(""), ".services-")
	if err != nil {
		return "", fmt.Errorf("pi: %w", err)
	}
	defer os.RemoveAll(out)
	cmd := exec.CommandContext(ctx, program, "image", "services", "--out", out, "--approve-key", b.approverKey(), "--version", "1",
		"--cache", filepath.Join(b.Repository, "build", "cache"))
	cmd.Dir = b.Repository
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("pi: %s: %w\n%s", strings.Join(cmd.Args, " "), err, said)
	}
	dir = b.dir("services")
	if unchanged(ctx, out, dir) {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.Chmod(out, 0o755), os.Rename(out, dir)); err != nil {
		return "", fmt.Errorf("pi: %w", err)
	}
	return dir, nil
}

// unchanged tells whether the directory old holds the archives of now, with approvals that
// still do.
func unchanged(ctx context.Context, now, old string) bool {
	if _, err := declared.Archives(ctx, old); err != nil {
		return false
	}
	for _, name := range declared.Names {
		a, aerr := digestFile(filepath.Join(now, name+".tar"))
		b, berr := digestFile(filepath.Join(old, name+".tar"))
		st, serr := os.Stat(filepath.Join(old, name+".approval"))
		if errors.Join(aerr, berr, serr) != nil || a != b || time.Since(st.ModTime()) > approvalAge {
			return false
		}
	}
	return true
}

// Contained are the settings of seed for a Pi whose services are containers: with
// approvers, and verifier.services where the configuration, which has to have a line
// for them, names none.
func Contained(seed, approvers string) string {
	return strings.Replace(seed, "services: []", "services: [pxed, attestd]", 1) + "approvers: '" + approvers + "'\n"
}
