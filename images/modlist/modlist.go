// Package modlist is the list of kernel modules that a PC of an image may have
// loaded: each with the build id that its code has in memory. The image builder
// calls Build and ships the list in the root image as Path; attestd reads it
// from there with Parse.
package modlist

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Path is where the list lies in the root image.
const Path = "/usr/lib/portcullis/modules.allow"

const header = "# portcullis modules v1: name build-id"

// maxModules bounds a list.
const maxModules = 16384

// List maps a module's name, with underscores, to its build id in hex.
type List map[string]string

// Source is one module file: .ko, .ko.xz, .ko.zst or .ko.gz.
type Source struct {
	Name string // as the file is called; "-" and "_" are the same
	KO   []byte
}

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9_]{1,64}$`)
	idForm   = regexp.MustCompile(`^([0-9a-f]{2}){8,32}$`)
)

// Name writes a module's name as the kernel shows it: with underscores.
func Name(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Build reads the build id of every module and writes the list, sorted. Equal
// modules give equal bytes.
func Build(modules []Source) ([]byte, error) {
	list := List{}
	for _, m := range modules {
		name := Name(m.Name)
		id, err := BuildID(m.KO)
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
		if other, ok := list[name]; ok && other != id {
			return nil, fmt.Errorf("module %s is in the image twice, with build ids %s and %s", name, other, id)
		}
		list[name] = id
	}
	return list.encode(), nil
}

func (l List) encode() []byte {
	names := make([]string, 0, len(l))
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	var b bytes.Buffer
	b.WriteString(header + "\n")
	for _, n := range names {
		fmt.Fprintf(&b, "%s %s\n", n, l[n])
	}
	return b.Bytes()
}

// Parse reads a list and refuses one that is not exactly what Build writes.
func Parse(file []byte) (List, error) {
	l := List{}
	for i, line := range strings.Split(strings.TrimSuffix(string(file), "\n"), "\n") {
		if i == 0 {
			continue
		}
		name, id, _ := strings.Cut(line, " ")
		if !nameForm.MatchString(name) || !idForm.MatchString(id) {
			return nil, fmt.Errorf("module list: line %d: want a name and a build id, have %.80q", i+1, line)
		}
		if i > maxModules {
			return nil, fmt.Errorf("module list: more than %d modules", maxModules)
		}
		l[name] = id
	}
	if !bytes.Equal(l.encode(), file) {
		return nil, fmt.Errorf("module list: not in the form of Build: first line %q, names sorted, none twice", header)
	}
	return l, nil
}

// NoteBuildID takes the build id out of an ELF note of type NT_GNU_BUILD_ID:
// the section .note.gnu.build-id, or /sys/module/NAME/notes/.note.gnu.build-id.
func NoteBuildID(note []byte) (string, error) {
	const head = "\x04\x00\x00\x00" // name size: "GNU\0"
	if len(note) < 16 || string(note[:4]) != head || note[8] != 3 || string(note[12:16]) != "GNU\x00" {
		return "", fmt.Errorf("no build id note")
	}
	size := int(note[4])
	if note[5]|note[6]|note[7] != 0 || size < 8 || size > 32 || len(note) < 16+size {
		return "", fmt.Errorf("build id note of a wrong size")
	}
	return hex.EncodeToString(note[16 : 16+size]), nil
}
