package deb

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// Package is one binary package, known by its digest.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"` // with epoch
	Arch    string `json:"arch"`    // amd64, arm64 or all
	Size    int64  `json:"size"`    // bytes of the .deb
	SHA256  string `json:"sha256"`  // hex, of the .deb
}

// String returns name=version, as the manifest lists it.
func (p Package) String() string { return p.Name + "=" + p.Version }

// Lock is what a request was resolved to. Its packages are sorted by name, so
// that equal resolutions are equal bytes.
type Lock struct {
	Packages []Package `json:"packages"`
}

// Get finds a package by name.
func (l *Lock) Get(name string) (Package, bool) {
	i := sort.Search(len(l.Packages), func(i int) bool { return l.Packages[i].Name >= name })
	if i < len(l.Packages) && l.Packages[i].Name == name {
		return l.Packages[i], true
	}
	return Package{}, false
}

// Names returns name=version of every package, sorted.
func (l *Lock) Names() []string {
	out := make([]string, len(l.Packages))
	for i, p := range l.Packages {
		out[i] = p.String()
	}
	return out
}

func (l *Lock) sort() {
	sort.Slice(l.Packages, func(i, j int) bool { return l.Packages[i].Name < l.Packages[j].Name })
}

// Encode returns the lock as JSON.
func (l *Lock) Encode() []byte {
	b, err := json.MarshalIndent(l, "", " ")
	if err != nil {
		panic(err) // strings and integers only
	}
	return append(b, '\n')
}

// ParseLock reads what Encode wrote and refuses anything that could not have
// come from it.
func ParseLock(b []byte) (*Lock, error) {
	l := new(Lock)
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(l); err != nil {
		return nil, fmt.Errorf("package lock: %w", err)
	}
	for i, p := range l.Packages {
		if !validName.MatchString(p.Name) || !validDigest.MatchString(p.SHA256) || p.Version == "" || p.Size <= 0 {
			return nil, fmt.Errorf("package lock: entry %d (%q) is not valid", i, p.Name)
		}
		if i > 0 && l.Packages[i-1].Name >= p.Name {
			return nil, fmt.Errorf("package lock: entry %d (%q) is out of order", i, p.Name)
		}
	}
	return l, nil
}

var (
	validName   = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	validDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// ValidName tells whether s can be the name of a Debian package (policy §5.6.7).
func ValidName(s string) bool { return validName.MatchString(s) }

// parseURIs reads the lines of apt-get --print-uris:
//
//	'<uri>' <file name> <size> SHA256:<hex>
//
// The file name is name_version_arch.deb with the epoch's colon escaped.
func parseURIs(out string) (*Lock, error) {
	l := new(Lock)
	for _, line := range strings.Split(out, "\n") {
		if !strings.HasPrefix(line, "'") {
			continue // apt's own talk
		}
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("apt-get --print-uris: cannot read %q", line)
		}
		file, err := url.PathUnescape(f[1])
		if err != nil {
			return nil, fmt.Errorf("apt-get --print-uris: file name %q: %w", f[1], err)
		}
		parts := strings.Split(strings.TrimSuffix(file, ".deb"), "_")
		digest, isSHA256 := strings.CutPrefix(f[3], "SHA256:")
		size, err := strconv.ParseInt(f[2], 10, 64)
		if len(parts) != 3 || !isSHA256 || err != nil || size <= 0 || !validName.MatchString(parts[0]) || !validDigest.MatchString(digest) {
			return nil, fmt.Errorf("apt-get --print-uris: cannot read %q", line)
		}
		l.Packages = append(l.Packages, Package{Name: parts[0], Version: parts[1], Arch: parts[2], Size: size, SHA256: digest})
	}
	l.sort()
	for i := 1; i < len(l.Packages); i++ {
		if l.Packages[i].Name == l.Packages[i-1].Name {
			return nil, fmt.Errorf("apt-get --print-uris: %s is listed twice", l.Packages[i].Name)
		}
	}
	return l, nil
}
