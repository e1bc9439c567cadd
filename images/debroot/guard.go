package debroot

import (
	"bytes"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"portcullis/images/recipe"
	"portcullis/images/squash"
)

// LabPath is the place of the lab's command channel in a root image.
const LabPath = "/usr/lib/portcullis/hpc-lab"

// labUnit starts it.
const labUnit = "portcullis-lab.service"

// labPort names the virtio-serial port of the lab's command channel. A file of
// an image for real machines that has these bytes is, or starts, the other end of it.
const labPort = "org.portcullis.lab"

// CheckLab compares a recipe with what is to be built: the lab's recipe makes
// lab images only, and no other brings anything of the command channel.
func CheckLab(r *recipe.Recipe, lab bool) error {
	if r.LabChannel != lab {
		if lab {
			return Refuse(ReasonOptions, "the recipe does not extend the lab recipe")
		}
		return Refuse(ReasonLabInReal, "the recipe extends the lab recipe and so cannot make an image for real machines")
	}
	if lab {
		return nil
	}
	// The finished tree is looked at too; what the recipe itself brings is refused before anything is fetched.
	for _, f := range r.Files {
		if err := guardLab(f.Path, &squash.Node{Kind: squash.File, Content: squash.Bytes(f.Content)}); err != nil {
			return fmt.Errorf("%s: %w", f.At, err)
		}
	}
	for _, l := range r.Links {
		if err := guardLab(l.Path, &squash.Node{Kind: squash.Symlink, Target: l.Target}); err != nil {
			return fmt.Errorf("%s: %w", l.At, err)
		}
	}
	for _, u := range r.Enable {
		if u == labUnit {
			return Refuse(ReasonLabInReal, "%s is the lab's command channel", u)
		}
	}
	return nil
}

// Guard looks at the finished tree: whatever recipe and packages say, an image
// with a login, a password, a setuid program or, unless it is the lab's, a command channel is refused.
func Guard(t *squash.Tree, lab bool) error {
	for _, p := range t.Paths() {
		n := t.Get(p)
		if n == nil {
			return fmt.Errorf("%s: unreachable path in the tree", p)
		}
		if !lab {
			if err := guardLab(p, n); err != nil {
				return err
			}
		}
		if n.Kind == squash.File && n.Mode&0o6000 != 0 {
			return Refuse(ReasonUnsafeTree, "%s runs with its owner's rights", p)
		}
		if slices.Contains(loginPrograms, p) {
			return Refuse(ReasonUnsafeTree, "%s lets somebody log in", p)
		}
	}
	b, err := t.Read("/etc/shadow")
	if err != nil {
		return Refuse(ReasonUnsafeTree, "no /etc/shadow: %v", err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if f := strings.Split(line, ":"); len(f) < 2 || !strings.HasPrefix(f[1], "!") {
			return Refuse(ReasonUnsafeTree, "account %q is not locked", f[0])
		}
	}
	return nil
}

// loginPrograms would open a way in.
var loginPrograms = []string{
	"/usr/sbin/agetty", "/usr/sbin/getty", "/usr/bin/login", "/usr/sbin/sulogin", "/usr/sbin/sshd", "/usr/sbin/dropbear",
	"/usr/sbin/telnetd", "/usr/sbin/in.telnetd", "/usr/bin/su", "/usr/bin/sudo",
}

// GuardLabProgram refuses a program that is, or starts, an end of the lab's command
// channel, whatever its name; for the ones that no root image holds.
func GuardLabProgram(name string, data []byte) error {
	return guardLab(name, &squash.Node{Kind: squash.File, Content: squash.Bytes(data)})
}

func guardLab(p string, n *squash.Node) error {
	if p == LabPath || path.Base(p) == labUnit || path.Base(p) == path.Base(LabPath) {
		return Refuse(ReasonLabInReal, "%s is the lab's command channel", p)
	}
	if n.Kind == squash.Symlink && strings.Contains(n.Target, path.Base(LabPath)) {
		return Refuse(ReasonLabInReal, "%s points to the lab's command channel", p)
	}
	if n.Kind != squash.File {
		return nil
	}
	found, err := contains(n.Content.Open(), labPort)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if found {
		return Refuse(ReasonLabInReal, "%s speaks on the lab's command channel (%s)", p, labPort)
	}
	return nil
}

// contains searches a stream for a short string.
func contains(r io.Reader, s string) (bool, error) {
	buf := make([]byte, 256<<10)
	keep := 0
	for {
		n, err := io.ReadFull(r, buf[keep:])
		if bytes.Contains(buf[:keep+n], []byte(s)) {
			return true, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		keep = copy(buf, buf[keep+n-len(s)+1:keep+n])
	}
}
