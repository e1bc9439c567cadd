// Package watch runs the tamper policy on a Pi: it merges what the intrusion switch and a
// Zymbit module see, hands it to package tamper, and does what that decides.
// "portcullis root watch" runs it as a service of its own.
package watch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"gopkg.in/yaml.v3"

	"portcullis/hardware/pins"
	"portcullis/hardware/tamper"
)

// Path is where the operator puts the configuration: on the encrypted data volume.
const Path = "/var/lib/portcullis/tamper/tamper.yaml"

// Schema is the only schema.
const Schema = "portcullis/tamper/v1"

// maxConfig caps the file, in bytes.
const maxConfig = 16 << 10

// Config is the whole file.
type Config struct {
	Schema string        `yaml:"schema"`
	Pins   pins.Config   `yaml:"pins"`
	Zymbit bool          `yaml:"zymbit"` // listen to zymbitd
	Tamper tamper.Config `yaml:"tamper"`

	Policy tamper.Policy `yaml:"-"`
}

// Watches reports whether there is anything to watch.
func (c *Config) Watches() bool { return c.Pins.Intrusion != "" || c.Zymbit }

// Load reads the file at path.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, err
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads a configuration strictly. What it returns is valid, its policy included.
func Parse(b []byte) (*Config, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("more than %d bytes", maxConfig)
	}
	c := Config{Pins: pins.Config{Debounce: pins.Default().Debounce}}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	if c.Schema != Schema {
		return nil, fmt.Errorf("schema %q is not %q", c.Schema, Schema)
	}
	c.Pins.Zymbit = c.Pins.Zymbit || c.Zymbit
	if err := c.Pins.Check(); err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	var err error
	if c.Policy, err = tamper.NewPolicy(c.Tamper); err != nil {
		return nil, fmt.Errorf("tamper: %w", err)
	}
	return &c, nil
}
