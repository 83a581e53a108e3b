package sbom

// ExampleDisk is for tests that cannot be of this package, since they use one that imports it.
var ExampleDisk = exampleDisk
