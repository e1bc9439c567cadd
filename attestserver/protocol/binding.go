package protocol

// Binding ties evidence to one TLS connection between two keys in one boot
// session; see Bind.
type Binding [64]byte
