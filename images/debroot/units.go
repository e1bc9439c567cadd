package debroot

import (
	"bufio"
	"bytes"
	"path"
	"strings"

	"portcullis/images/squash"
)

// unitDirs are where units lie, the stronger first (systemd.unit(5)).
var unitDirs = []string{"/etc/systemd/system", "/usr/lib/systemd/system"}

// Enable makes the links that "systemctl enable" would make for unit.
func Enable(t *squash.Tree, unit string) error {
	for _, dir := range unitDirs {
		file := path.Join(dir, unit)
		if t.Get(file) == nil {
			continue
		}
		b, err := t.Read(file)
		if err != nil {
			return err
		}
		links := 0
		for _, w := range installWords(b) {
			var at string
			switch w.key {
			case "WantedBy":
				at = path.Join(unitDirs[0], w.value+".wants", unit)
			case "RequiredBy":
				at = path.Join(unitDirs[0], w.value+".requires", unit)
			case "Alias":
				at = path.Join(unitDirs[0], w.value)
			default:
				continue
			}
			if err := t.Link(at, file); err != nil {
				return err
			}
			links++
		}
		if links == 0 {
			return Refuse(ReasonOptions, "unit %s has no [Install] section that could enable it", unit)
		}
		return nil
	}
	return Refuse(ReasonMissing, "unit %s to be enabled is in no package and no file of the recipe", unit)
}

// Mask makes unit impossible to start. One that no package has is masked too:
// a later package may bring it.
func Mask(t *squash.Tree, unit string) error {
	return t.Link(path.Join(unitDirs[0], unit), "/dev/null")
}

type word struct{ key, value string }

// installWords reads the [Install] section of a unit file.
func installWords(b []byte) []word {
	var out []word
	section := ""
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, value, ok := strings.Cut(line, "=")
		if section != "[Install]" || !ok || strings.HasPrefix(line, "#") {
			continue
		}
		for _, v := range strings.Fields(value) {
			out = append(out, word{strings.TrimSpace(key), v})
		}
	}
	return out
}

// Installable tells whether a unit file says where it is to be enabled.
func Installable(unit []byte) bool {
	for _, w := range installWords(unit) {
		if w.key == "WantedBy" || w.key == "RequiredBy" {
			return true
		}
	}
	return false
}
